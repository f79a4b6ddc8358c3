"""Memory of a snapshot: it is there before the first save, and a GPU's runtime pins it and gets it back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.checkpoints import state
from tests.trainer.cuda import stand_in_cuda
from trainer.checkpoint.layout import Layout
from trainer.checkpoint.saver import Copier
from trainer.process.snapshot import Snapshot


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_the_memory_of_a_snapshot_is_there_before_the_first_save() -> None:
    before = resident_bytes()
    snapshot = Snapshot.create(64 << 20)
    assert resident_bytes() - before >= 64 << 20
    assert snapshot.bytes == 64 << 20


def copier(snapshots: int) -> Copier:
    layout = Layout.of(state(1))
    return Copier(state(1), layout, [Snapshot.create(layout.bytes) for _ in range(snapshots)])


def test_memory_that_was_pinned_is_given_back_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = stand_in_cuda(monkeypatch)
    layout = Layout.of(state(1))
    snapshots = [Snapshot.create(layout.bytes) for _ in range(2)]
    first = Copier(state(1), layout, snapshots)
    assert len(cuda.registered) == 2
    first.close()
    assert cuda.registered == []
    Copier(state(1), layout, snapshots)  # the next run in this process may get the same addresses
    assert len(cuda.registered) == 2


def test_memory_that_cannot_be_pinned_is_said_and_the_run_goes_on(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    cuda = stand_in_cuda(monkeypatch, refusal=2)
    monkeypatch.setattr(torch, "zeros", cuda.launch)
    unpinned = copier(1)
    assert capfd.readouterr().err.count("cannot be pinned (CUDA error 2): saving is slower") == 1
    cuda.launch(1, device="cuda")  # the refusal is not told as an error of the next kernel
    unpinned.start(0)
    cuda.finish()
    assert unpinned.is_done()
    unpinned.close()


def test_a_process_that_saves_nothing_takes_no_memory_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_cuda(monkeypatch)
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *arguments, **named: pytest.fail("a buffer"))
    copier(0).close()
