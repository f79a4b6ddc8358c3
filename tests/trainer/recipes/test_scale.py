"""`--size` scales all sizes of a recipe in proportion, `--epochs` its ramp; what is typed beside them counts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trainer.contract import UserError
from trainer.data.format import Index, Size, SplitIndex
from trainer.recipes.command_line import command_line
from trainer.recipes.config import Config
from trainer.recipes.named import RECIPES
from trainer.recipes.rules import checked
from trainer.recipes.scale import lasting, scaled
from trainer.recipes.sides import wanted_spans


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
    expected = scaled(lasting(RECIPES["mild"](), 9), 128)
    assert typed == replace(expected, data=replace(expected.data, val_crop=100))


@pytest.mark.parametrize("recipe", ["digits", "folder", "mild", "thrift", "rn50-16", "a3", "v2-90"])  # one a kind
def test_stored_copies_serve_at_every_size_what_they_serve_at_the_recipes_own(recipe: str) -> None:
    config = RECIPES[recipe]()
    copies = len(used(config, "train"))
    largest = (
        2048 * config.data.resolution // max(config.data.val_crop, *stored(config, "train"), *stored(config, "val"))
    )
    for size in range(32, 2049):
        if size > largest:
            with pytest.raises(UserError, match=f"--size is {size}: it must be 32 to {largest} pixels"):
                scaled(config, size)
            continue
        small = scaled(config, size)
        assert small.data.start_resolution <= size
        assert {*used(small, "val")} == {small.data.val_side}
        own_start = config.data.start_resolution * size / config.data.resolution
        if own_start >= 32:  # else the start is larger than its share
            assert len(used(small, "train")) >= copies, size  # a start that is rounded down may read one more
        for split, own in ((split, wanted_spans(config)[split]) for split in ("train", "val")):
            if max(stored(config, split)) >= max(least for least, _ in own):
                assert max(stored(small, split)) >= max(least for least, _ in wanted_spans(small)[split]), size


def stored(config: Config, split: str) -> tuple[int, ...]:
    return config.data.train_sides if split == "train" else (config.data.val_side,)


def used(config: Config, split: str) -> set[int]:
    """Of the copies that the recipe stores: those that a run reads."""
    sizes = {
        name: SplitIndex(1, tuple(Size(side, 90, ()) for side in stored(config, name))) for name in ("train", "val")
    }
    index = Index("a", "b", ("c", "d"), sizes, "f")
    return {side for span in wanted_spans(config)[split] for side in index.sides_for(split, span)}


@pytest.mark.parametrize("recipe", ["mild", "thrift", "rn50-16", "rn50-88"])
def test_the_ramp_follows_the_epochs_and_ends_before_the_last_one(recipe: str) -> None:
    own = RECIPES[recipe]()
    for epochs in (2, 3, 10, 40, 300):
        config = command_line("train", [recipe, "--epochs", str(epochs), "--schedule.warmup-epochs", "1"])
        assert config.epochs == epochs
        assert config.resolution_at(epochs - 1) == own.data.resolution
        assert config.resolution_at(0) == own.data.start_resolution
        assert config.data.ramp_end_epoch / epochs == pytest.approx(
            own.data.ramp_end_epoch / own.epochs, abs=1 / epochs
        )
    assert command_line("train", [recipe, "--epochs=1", "--schedule.warmup-epochs", "0.5"]).resolutions() == {
        own.data.resolution
    }
    typed = command_line("train", [recipe, "--epochs", "40", "--data.ramp-end-epoch", "39"])
    assert typed.data.ramp_end_epoch == 39
    with pytest.raises(
        UserError, match=r"ramp-end-epoch is 40.0: .*at most 39, .*; pass --data.ramp-start-epoch 15.6 "
    ):
        command_line("train", [recipe, "--epochs", "40", "--data.ramp-end-epoch", "40"])


def test_a_start_without_a_ramp_is_refused_with_the_options_to_type() -> None:
    with pytest.raises(
        UserError, match=r"ramp-end-epoch is 0.0: .*start-resolution 96 .*; pass .*--data.ramp-end-epoch"
    ):
        command_line("train", ["folder", "--data.start-resolution", "96"])
    with pytest.raises(
        UserError, match=r"start-resolution is 96: .*224 .*with --epochs 1; pass --data.start-resolution 224"
    ):
        command_line("train", ["folder", "--data.start-resolution", "96", "--epochs", "1"])


@pytest.mark.parametrize(
    ("typed", "said"),
    [("31", "--size is 31: .*32 to 750 "), ("751", "--size is 751: .*750 "), ("x", "options are not understood")],
)
def test_a_size_that_no_network_takes_is_named(typed: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        command_line("train", ["mild", "--size", typed])
