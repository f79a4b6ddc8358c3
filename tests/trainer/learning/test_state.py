"""The counters of a checkpoint, taken over by a run of another precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from trainer.contract import UserError
from trainer.learning.state import State, make_state
from trainer.recipes.config import Config, ModelConfig


@pytest.fixture
def in_precision() -> Any:
    def make(precision: Any) -> State:
        config = Config(model=ModelConfig(name="resnet18", num_classes=2), precision=precision)
        return make_state(config, torch.device("cpu"), initialise=False)

    return make


def test_a_run_goes_on_in_another_precision_with_a_new_scaler_or_none(in_precision: Any) -> None:
    half, brain = in_precision("fp16"), in_precision("bf16")
    half.step, half.scaler = 7, torch.amp.GradScaler("cpu", init_scale=128.0)
    brain.load_counters(half.counters())
    assert (brain.step, brain.counters()["scaler"]) == (7, {})
    again = in_precision("fp16")
    fresh = again.counters()["scaler"]
    again.load_counters(brain.counters())
    assert (again.step, again.counters()["scaler"]) == (7, fresh)
    again.load_counters(half.counters())
    assert again.counters()["scaler"]["scale"] == 128.0
    with pytest.raises(UserError, match="of the scaler"):
        again.load_counters(half.counters() | {"scaler": {"scale": 1.0}})
