"""The mean of the last epochs' weights (SWA): in the checkpoint, scored, exact over interruptions, exported."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from tests.trainer.lab import CONFIG, Lab
from trainer import train as module
from trainer.checkpoint.line import list_manifests
from trainer.checkpoint.restore import read_manifest, read_object, tensors_of
from trainer.checkpoints import main
from trainer.contract import Exit, Phase
from trainer.learning.evaluation import scores
from trainer.learning.norms import renew_norms
from trainer.process.interruption import Interrupted
from trainer.recipes.config import AverageConfig

LATE = replace(CONFIG, average=AverageConfig(late_epochs=2))  # of 3 epochs, of 2 steps each


def saved(lab: Lab) -> dict[int, dict[str, Tensor]]:
    """The tensors of the checkpoints by their steps."""
    found = {}
    for key in list_manifests(lab.store, "loop")[1]:
        manifest = read_manifest(lab.store, "loop", key)
        found[manifest["step"]] = tensors_of(read_object(lab.store, manifest))
    return found


def part(tensors: dict[str, Tensor], owner: str) -> dict[str, Tensor]:
    return {name.removeprefix(owner): tensor for name, tensor in tensors.items() if name.startswith(owner)}


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_the_mean_is_that_of_the_weights_after_the_last_epochs_and_is_scored_whenever_it_moves(lab: Lab) -> None:
    lab.train(replace(LATE, val_every_epochs=3))
    found = saved(lab)
    after = [part(found[step], "model.") for step in (4, 6)]
    assert same(part(found[4], "swa."), after[0]) is False  # other statistics
    for name, mean in part(found[6], "swa.").items():
        if "running" not in name and mean.is_floating_point():
            torch.testing.assert_close(mean, (after[0][name] + after[1][name]) / 2, rtol=1e-6, atol=1e-7)
            assert torch.equal(part(found[4], "swa.")[name], after[0][name])
    scored = {
        row["step"]: {name for name in row if name.startswith("val_swa")} for row in lab.rows() if "val/top1" in row
    }
    names = {"val_swa/loss", "val_swa/top1", "val_swa/top5"}
    assert scored == {4: names, 6: names}


def test_a_run_that_was_interrupted_everywhere_ends_with_the_same_mean(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.train(LATE)
    whole, rows = lab.weights(), lab.rows()
    lab.begin_in(tmp_path / "again")

    def stopped(*arguments: Any) -> None:
        model, batches, config, world, step, _ = arguments

        def stop(images: int) -> None:
            lab.interruption.requested = True
            raise Interrupted

        renew_norms(model, batches, config, world, step, stop)

    monkeypatch.setattr(module, "renew_norms", stopped)  # between two of its batches
    assert lab.train(LATE) == (Exit.INTERRUPTED, "step 4 of 6 is saved")
    monkeypatch.setattr(module, "renew_norms", renew_norms)
    lab.signals[5] = signal.SIGTERM  # between the mean's moves
    assert lab.train(LATE) == (Exit.INTERRUPTED, "step 6 of 6 is saved")
    lab.stop_in = Phase.EVALUATING
    assert lab.train(LATE) == (Exit.INTERRUPTED, "step 6 of 6 is saved")
    assert lab.train(LATE)[0] == Exit.FINISHED
    assert same(lab.weights(), whole)
    validated = [[{k: v for k, v in row.items() if "val" in k} for row in found] for found in (rows, lab.rows())]
    assert validated[0] == validated[1]


def test_a_mean_is_exported_once_there_is_one(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def favouring(*arguments: Any) -> dict[str, float]:
        found = scores(*arguments)
        return {name: float(name == "val_swa/top1") if "top1" in name else found[name] for name in found}

    monkeypatch.setattr(module, "scores", favouring)
    lab.train(LATE)
    monkeypatch.setenv("TRAINER_STORE", lab.store.uri)
    monkeypatch.setenv("TRAINER_RUN_ID", "loop")
    file = str(tmp_path / "weights.safetensors")
    assert main(["export", file, "--step", "2", "--weights", "swa"]) == Exit.USER
    assert "step 2 has no mean yet that was validated: it is that of the last 2 epochs" in capsys.readouterr().err
    for step, weights in ((6, "swa"), (4, "auto")):  # which was the best of all
        assert main(["export", file, "--step", str(step), "--weights", weights]) == Exit.FINISHED
        assert f"step {step}, swa weights" in capsys.readouterr().out
        assert same(safetensors.torch.load_file(file), part(saved(lab)[step], "swa."))
