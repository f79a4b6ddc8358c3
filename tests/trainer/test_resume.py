"""A run that ended early and was continued has the weights and metrics of one that was not, bit for bit.

In this process, with stand-ins for data and uploader. test_train.py has the same with processes and SIGKILL.
"""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from tests.trainer.lab import CONFIG, SAVE_EACH_STEP, STEPS_PER_EPOCH, Lab
from tests.trainer.rows import learned, merged
from trainer import train as module
from trainer.contract import Exit
from trainer.recipes.config import RegularizeConfig
from trainer.setup import Run

pytestmark = pytest.mark.slow

# All that has a state of its own: accumulation, mixing, erasing, growing images, the average, the scaler.
REGULARIZE = RegularizeConfig(
    mixup_alpha=0.2, cutmix_alpha=1, augment="trivial", erasing_probability=0.3, ema_decay=0.9
)  # fmt: skip
DATA = replace(CONFIG.data, start_resolution=32, resolution=48, ramp_end_epoch=3, resolution_multiple=16)


def test_interrupted_before_any_step_and_continued_it_ends_with_the_same_weights(lab: Lab, tmp_path: Path) -> None:
    config = replace(CONFIG, deterministic=True, epochs=2)
    lab.train(config)
    whole = lab.weights()
    assert {"model.fc.weight", "ema.fc.weight", "momentum.fc.weight"} <= whole.keys()
    for step in range(4):
        lab.begin_in(tmp_path / f"stopped-{step}")
        lab.signals = {step: signal.SIGTERM}
        assert lab.train(config)[0] == Exit.INTERRUPTED
        assert lab.train(config)[0] == Exit.FINISHED
        found = lab.weights()
        assert all(torch.equal(tensor, found[name]) for name, tensor in whole.items())


@pytest.mark.parametrize(("precision", "optimizer"), [("fp32", "lamb"), ("bf16", "adamw"), ("fp16", "sgd")])
def test_ended_without_a_last_save_and_continued_with_other_workers_it_ends_the_same(
    precision: Literal["fp32", "bf16", "fp16"],
    optimizer: Literal["sgd", "adamw", "lamb"],
    lab: Lab,
    tmp_path: Path,
) -> None:
    config = replace(
        CONFIG, deterministic=True, precision=precision, epochs=8, val_every_epochs=2, checkpoint=SAVE_EACH_STEP,
        regularize=REGULARIZE, data=DATA, optim=replace(CONFIG.optim, name=optimizer),
    )  # fmt: skip
    lab.train(config)
    whole, rows, counters = lab.weights(), merged(learned(lab.rows())), lab.counters()

    lab.begin_in(tmp_path / "ended-early")
    step = module.step
    for workers, at in ((1, 3), (3, 9)):

        def ends(run: Run, at: int = at) -> None:
            if run.state.step == at:
                raise MemoryError("this attempt ends here")
            step(run)

        lab.monkeypatch.setattr(module, "step", ends)
        with pytest.raises(MemoryError):
            lab.train(replace(config, data=replace(config.data, workers=workers)))
    lab.monkeypatch.setattr(module, "step", step)
    assert lab.train(replace(config, data=replace(config.data, workers=4)))[0] == Exit.FINISHED
    assert lab.attempt == 3
    found = lab.weights()
    assert found.keys() == whole.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, found[name]), name
    assert merged(learned(lab.rows())) == rows
    assert [row["step"] for row in lab.rows() if "train/loss" in row] == list(range(1, 8 * STEPS_PER_EPOCH + 1))
    assert lab.counters()["scaler"] == counters["scaler"]
    assert bool(counters["scaler"]) == (precision == "fp16")
