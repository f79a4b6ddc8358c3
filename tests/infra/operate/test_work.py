"""What the AWS app knows of the recipes is what the trainer computes; `--size` and `--epochs` change it."""

from __future__ import annotations

import pytest

from infra.operate.planning.work import Stage, recipes, uncounted, with_epochs, with_size, work_of
from tests.infra.operate.works import work
from trainer.contract import UserError
from trainer.recipes import named, scale


def test_the_table_of_recipes_says_what_the_trainer_computes() -> None:
    assert {*recipes()} == named.RECIPES.keys()
    for name in recipes():
        config, found = named.RECIPES[name](), work_of(name)
        assert found.data == named.DEFAULT_DATA.get(name, named.USUAL_DATA)
        assert found.epochs == config.epochs
        assert found.precision == config.precision
        assert found.compile == config.compile
        pixels = [config.resolution_at(epoch) for epoch in range(config.epochs)]
        assert found.full_epochs == pytest.approx(sum((one / 224) ** 2 for one in pixels), rel=0.01)
        assert found.train_sides == config.data.train_sides
        assert found.copy_per_crop == config.data.copy_per_crop
        assert found.crop_scale == config.data.crop_scale


def test_options_of_the_launch_change_the_work() -> None:
    plain = work_of("finetune")
    changed = work_of("finetune", ("--epochs", "4", "--precision", "fp16", "--compile", "--val-every-epochs=2"))
    assert (changed.epochs, changed.precision, changed.compile, changed.validations) == (4, "fp16", True, 2)
    assert changed.full_epochs == pytest.approx(plain.full_epochs * 4 / plain.epochs)
    assert work_of("finetune", ("--size", "112")).full_epochs == pytest.approx(plain.full_epochs / 4)
    assert work_of("finetune", ("--model.name", "resnet18")).network == "resnet18"


def test_the_sizes_of_images_follow_the_epochs_as_the_trainer_has_it() -> None:
    ramp = work((96, 4), (160, 2), (224, 2))
    assert with_epochs(ramp, 4).stages == (Stage(96, 2), Stage(160, 1), Stage(224, 1))
    assert with_epochs(ramp, 20).stages == (Stage(96, 10), Stage(160, 5), Stage(224, 5))
    assert with_epochs(ramp, 8).stages == ramp.stages
    for name in ("mild", "thrift", "rn50-16", "rn50-88"):
        for epochs in (10, 40, 90):
            trained = scale.lasting(named.RECIPES[name](), epochs)
            pixels = [trained.resolution_at(epoch) for epoch in range(epochs)]
            expected = sum((one / 224) ** 2 for one in pixels)
            assert work_of(name, ("--epochs", str(epochs))).full_epochs == pytest.approx(expected, rel=0.08)


def test_a_size_scales_every_stage_and_copy() -> None:
    small = with_size(work((96, 4), (192, 4), val_crop=256, train_sides=(480, 256)), 96)
    assert small.stages == (Stage(48, 4), Stage(96, 4))
    assert (small.val_crop, small.train_sides) == (128, (240, 128))


def test_options_that_the_estimate_does_not_count_are_named() -> None:
    assert uncounted(("--epochs", "4", "--data.resolution", "160")) == ["--data.resolution"]
    assert uncounted(("--epochs", "4")) == []


def test_an_unknown_recipe_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(UserError, match="'imagenet' is unknown: choose one of digits, "):
        work_of("imagenet")
