"""Memory of a snapshot: it is there before the first save, and a GPU's runtime pins it and gets it back."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.checkpoints import state
from trainer.checkpoint.saver import Copier
from trainer.process.snapshot import Snapshot


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_the_memory_of_a_snapshot_is_there_before_the_first_save() -> None:
    before = resident_bytes()
    snapshot = Snapshot.create(64 << 20)
    assert resident_bytes() - before >= 64 << 20
    assert snapshot.bytes == 64 << 20


class StandInCudart:
    """The two calls of CUDA's runtime that pin memory; it refuses what it is told to refuse."""

    def __init__(self, refusal: int = 0):
        self.refusal, self.registered = refusal, list[int]()

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:  # noqa: N802
        if address in self.registered:
            return 712  # cudaErrorHostMemoryAlreadyRegistered
        if not self.refusal:
            self.registered.append(address)
        return self.refusal

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        self.registered.remove(address)
        return 0


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], tuple[StandInCudart, Copier]]:
    """A copier that takes itself to be on a GPU, and what it asks of CUDA."""

    def make(refusal: int) -> tuple[StandInCudart, Copier]:
        cudart, copier = StandInCudart(refusal), Copier(state(1), ())
        monkeypatch.setattr(torch.cuda, "cudart", lambda: cudart)
        copier.stream = object()
        return cudart, copier

    return make


def test_memory_that_was_pinned_is_given_back_at_the_end(gpu: Callable[[int], tuple[StandInCudart, Copier]]) -> None:
    cudart, copier = gpu(0)
    snapshots = [Snapshot.create(100), Snapshot.create(100)]
    for snapshot in snapshots:
        copier.pin(snapshot)
    assert len(cudart.registered) == 2
    copier.close()
    assert cudart.registered == []
    for snapshot in snapshots:  # the next run in this process may get the same addresses
        copier.pin(snapshot)
    assert len(cudart.registered) == 2


def test_memory_that_cannot_be_pinned_is_said_and_the_run_goes_on(
    gpu: Callable[[int], tuple[StandInCudart, Copier]], capfd: pytest.CaptureFixture[str]
) -> None:
    _, copier = gpu(2)
    copier.pin(Snapshot.create(100))
    assert "cannot be pinned (CUDA error 2): saving is slower" in capfd.readouterr().err
    copier.close()
