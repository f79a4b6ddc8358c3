"""A run that went wrong, taken back to an older step: it trains on from there as if it had never been past it."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.lab import CONFIG, Lab
from tests.trainer.rows import learned, merged
from trainer import train as module
from trainer.checkpoints import main
from trainer.contract import HEAD_FILE, Exit, Lease, RefusedError, RunEnv, UserError, checkpoint_key, run_key
from trainer.learning.step import train_step
from trainer.recipes.config import CheckpointConfig
from trainer.recipes.fields import to_json
from trainer.report import write_report

pytestmark = pytest.mark.slow

SAME = replace(CONFIG, deterministic=True)
HOPELESS = replace(
    SAME, optim=replace(SAME.optim, peak_lr=1e4), checkpoint=CheckpointConfig(every_seconds=3600, accept_changes=True)
)


@pytest.fixture
def diverged(lab: Lab, tmp_path: Path) -> Lab:
    """A run that is fine up to step 3, and then went on to step 4 with a learning rate that is far too high."""
    lab.begin_in(tmp_path / "diverged")
    lab.owns = True
    for name in ("store", "run_id", "scratch_dir"):
        lab.monkeypatch.setenv(RunEnv.variable(name), lab.environ[RunEnv.variable(name)])
    lab.signals = {2: signal.SIGTERM}
    assert lab.train(SAME) == (Exit.INTERRUPTED, "step 3 of 6 is saved")
    lab.signals = {3: signal.SIGTERM}
    assert lab.train(HOPELESS) == (Exit.INTERRUPTED, "step 4 of 6 is saved")
    return lab


def lease(lab: Lab) -> Lease:
    return Lease.from_json(lab.store.get(checkpoint_key("loop", HEAD_FILE)))


def config_json(lab: Lab) -> Any:
    return json.loads(lab.store.get(run_key("loop", "config.json")))


def test_it_ends_with_the_bits_and_the_metrics_of_a_run_that_was_never_past_that_step(
    diverged: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lab, left = diverged, lease(diverged).newest
    with pytest.raises(RefusedError, match=r"optim.peak_lr: 10000.0 -> 0.0001"):  # no way back without the command
        lab.train(SAME)
    assert main(["rewind", "3"]) == Exit.FINISHED
    assert "nothing was deleted" in capsys.readouterr().out
    assert config_json(lab) == json.loads(json.dumps(to_json(SAME)))
    summary = write_report(lab.store, "loop")
    assert (summary.steps, summary.checkpoint) == (3, lab.store.describe(lease(lab).newest))
    assert lab.train(SAME) == (Exit.FINISHED, "6 steps are done")
    found, rows = lab.weights(), merged(learned(lab.rows()))
    assert main(["verify", "--every"]) == Exit.FINISHED
    assert f"ok       {lab.store.describe(left)}" in capsys.readouterr().out, "it is there, and no metric is missing"
    assert write_report(lab.store, "loop").checkpoint == lab.store.describe(lease(lab).newest)

    lab.owns = False
    lab.begin_in(tmp_path / "straight")
    lab.train(SAME)
    assert found.keys() == lab.weights().keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in lab.weights().items())
    assert rows == merged(learned(lab.rows()))


def test_it_goes_on_with_another_learning_rate_that_later_starts_need_not_ask_for(diverged: Lab) -> None:
    lab = diverged
    assert main(["rewind", "3"]) == Exit.FINISHED
    lower = replace(SAME, optim=replace(SAME.optim, peak_lr=5e-5))
    with pytest.raises(RefusedError, match=r"optim.peak_lr: 0.0001 -> 5e-05.*--checkpoint.accept-changes"):
        lab.train(lower)
    lab.signals = {4: signal.SIGTERM}
    asked = CheckpointConfig(every_seconds=3600, accept_changes=True)
    assert lab.train(replace(lower, checkpoint=asked)) == (Exit.INTERRUPTED, "step 5 of 6 is saved")
    assert config_json(lab)["optim"]["peak_lr"] == 5e-5
    assert lab.train(lower) == (Exit.FINISHED, "6 steps are done")
    assert lab.counters()["step"] == 6
    rates = [row["train/lr"] for row in lab.rows() if "train/lr" in row]
    assert len(rates) == 6
    assert max(rates) <= 1e-4, "nothing is left of the one that was too high"


def test_a_change_that_was_asked_for_and_saved_nothing_binds_no_later_start(diverged: Lab) -> None:
    """`config.json` is of the last start; what counts is the config of the checkpoint from which the run goes on."""
    lab = diverged
    assert main(["rewind", "3"]) == Exit.FINISHED
    lab.monkeypatch.setattr(module, "train_step", lambda *arguments: 1 / 0)
    for config in (HOPELESS, SAME):
        with pytest.raises(ZeroDivisionError):
            lab.train(config)
        assert config_json(lab)["optim"]["peak_lr"] == config.optim.peak_lr


def test_a_loss_that_is_not_finite_names_the_way_back(diverged: Lab) -> None:
    lab = diverged

    def infinite(*arguments: Any) -> torch.Tensor:
        return train_step(*arguments) * float("inf")

    lab.monkeypatch.setattr(module, "train_step", infinite)
    with pytest.raises(UserError, match=r'it must be finite; .* make checkpoints ARGS="rewind STEP"'):
        lab.train(HOPELESS)
