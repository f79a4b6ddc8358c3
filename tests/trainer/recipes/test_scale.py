"""`--size` scales all sizes of a recipe in proportion, and what is typed beside it counts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trainer.contract import UserError
from trainer.recipes.command_line import command_line
from trainer.recipes.named import RECIPES
from trainer.recipes.rules import checked
from trainer.recipes.scale import scaled


def test_every_size_of_a_recipe_follows_the_one_that_is_typed() -> None:
    data = command_line("train", ["folder", "--size", "160"]).data
    assert (data.start_resolution, data.resolution, data.val_resize, data.val_crop) == (160, 160, 166, 160)
    assert (data.train_sides, data.val_side) == ((343, 183), 229)
    assert command_line("train", ["folder", "--size=160"]).data == data


def test_a_start_that_is_smaller_stays_a_multiple_and_no_smaller_than_a_network_takes() -> None:
    mild = RECIPES["mild"]()
    assert scaled(mild, 128).resolutions() >= {64, 68, 124, 128}
    assert all(pixels % 4 == 0 for pixels in scaled(mild, 128).resolutions())
    assert scaled(mild, 48).resolutions() == {32, 36, 40, 44, 48}
    assert scaled(RECIPES["rn50-16"](), 128).resolutions() == {96, 128}


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_takes_every_size_and_its_own_changes_nothing(recipe: str) -> None:
    config = RECIPES[recipe]()
    assert scaled(config, config.data.resolution) == config
    for size in (64, 100, 384):
        data = checked(scaled(config, size)).data
        assert data.resolution == size
        assert data.val_side >= data.val_resize >= data.val_crop
        assert data.val_crop / data.resolution == pytest.approx(
            config.data.val_crop / config.data.resolution, abs=2 / size
        )


def test_what_is_typed_beside_the_size_counts_and_nothing_but_sizes_changes() -> None:
    typed = command_line("train", ["mild", "--size", "128", "--data.val-crop", "100", "--epochs", "9"])
    expected = scaled(RECIPES["mild"](), 128)
    assert typed == replace(expected, epochs=9, data=replace(expected.data, val_crop=100))


@pytest.mark.parametrize(("typed", "said"), [("31", "--size is 31: .*32 to 2048"), ("x", "options are not understood")])
def test_a_size_that_no_network_takes_is_named(typed: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        command_line("train", ["mild", "--size", typed])
