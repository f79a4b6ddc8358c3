"""The parts of recipes that no source is compared with work together: a few steps on a few small images.

test_parity.py follows the sources of the others.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.runs import NETWORK
from tests.trainer.lab import Lab
from tests.trainer.standins import CLASSES
from trainer.contract import Exit
from trainer.recipes.config import Config
from trainer.recipes.named import RECIPES
from trainer.recipes.rules import checked
from trainer.recipes.scale import scaled


def small(config: Config) -> Config:
    """The config with its own optimizer, loss, schedule, average and augmentation, for an epoch of two steps."""
    return replace(
        scaled(config, 32),
        epochs=1,
        global_batch_size=4,
        device_batch_size=2,
        val_batch_size=4,
        device="cpu",
        precision="fp32",
        compile=False,
        model=replace(config.model, name=NETWORK, weights=""),
    )


@pytest.mark.parametrize("recipe", ["folder", "finetune-v2"])
def test_a_recipe_trains_validates_and_saves(recipe: str, lab: Lab) -> None:
    lab.environ["TRAINER_DATA"] = "images"  # the laboratory has its own
    assert lab.train(checked(small(RECIPES[recipe]())))[0] == Exit.FINISHED
    assert lab.counters()["step"] == 2
    weights = lab.weights()
    assert len(weights["ema.fc.bias"]) == len(weights["model.fc.bias"]) == CLASSES
