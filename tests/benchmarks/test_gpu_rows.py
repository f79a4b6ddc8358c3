"""Rows of the GPU's bench that need a GPU, or that a GPU can make fail: what of them can be tried without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

from benchmarks.gpu import runs, snapshots, steps
from benchmarks.gpu.measure import BATCH, TINY_BATCH, TINY_PIXELS, Place
from benchmarks.gpu.rows import ROWS, Row
from trainer.recipes.rules import checked

ON_GPU = [row for row in ROWS if row.needs == "cuda" and row.function == "steps.rate"]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(torch.device("cpu"), True, TINY_BATCH, TINY_PIXELS, tmp_path, tmp_path, 60.0)


@pytest.mark.parametrize("row", ON_GPU, ids=lambda row: row.name)
def test_the_options_of_a_row_that_needs_a_gpu_are_options_of_the_trainer(row: Row, tmp_path: Path) -> None:
    there = Place(torch.device("cuda"), False, BATCH, row.pixels, tmp_path, tmp_path, row.seconds)
    config = steps.config_of(there, steps.dotted(row.options))
    checked(config)
    assert config.data.resolution == row.pixels


def test_every_other_row_that_needs_a_gpu_has_no_options() -> None:
    assert [row.name for row in ROWS if row.needs and row not in ON_GPU and row.options] == []


def test_a_batch_that_does_not_fit_is_said_and_the_others_are_measured(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rate(place: Place, *, batch: int, rounds: int) -> dict[str, Any]:
        if batch == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 98.00 MiB.\nmore")
        return {"batch": batch}

    monkeypatch.setattr(steps, "rate", rate)
    said = {"batch": 2, "out_of_memory": "CUDA out of memory. Tried to allocate 98.00 MiB."}
    assert steps.memory(place) == {"2": said, "4": {"batch": 4}}


def test_a_run_that_finished_before_its_interruption_is_no_proof(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "prepared", lambda folder, name: folder)
    monkeypatch.setattr(runs, "follow", lambda attempt: {"exit": 0})
    with pytest.raises(AssertionError, match="was not interrupted, so nothing was compared"):
        runs.interrupted(place)


def test_saves_that_were_not_taken_are_not_counted_as_saves(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    saving = MagicMock()
    saving.tensors.return_value = {}
    monkeypatch.setattr(snapshots, "Saving", lambda *_, **__: saving)
    for saver in (saving.saver, saving.checkpointer.return_value):
        saver.save.return_value = False
    with pytest.raises(AssertionError, match="1 of 1 saves were not taken"):
        snapshots.disturbance(place)
    with pytest.raises(AssertionError, match="0 of 3 saves were taken and compared"):
        snapshots.torn(place)
