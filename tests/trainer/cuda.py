"""A stand-in for CUDA's streams, events and pinned memory: a GPU whose copies to the host take as long as a test says.

Tensors are the host's. What a test sees is the order: which copy began, and who waited for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from trainer.checkpoint import saver

HOST_MEMORY_ALREADY_REGISTERED = 712


class StandInEvent:
    """Passed when the copies that were begun before it are done. Without a record it is passed."""

    def __init__(self, cuda: StandInCuda):
        self.cuda, self.behind = cuda, 0

    def record(self) -> None:
        self.behind = self.cuda.begun

    def query(self) -> bool:
        return self.cuda.done >= self.behind

    def synchronize(self) -> None:
        if not self.query():
            self.cuda.waits += 1
            self.cuda.finish_copies()


class StandInCuda:
    """Copies on the side stream are done when `finish_copies` is called, or when an event behind them is waited for."""

    def __init__(self, refusal: int = 0):
        self.refusal, self.registered = refusal, list[int]()
        self.last_error = 0  # of the runtime: the next launch tells it, and clears it
        self.copies: list[Callable[[], object]] = []
        self.begun, self.done, self.waits = 0, 0, 0

    def finish_copies(self) -> None:
        for copy in self.copies:
            copy()
        self.copies.clear()
        self.done = self.begun

    def wait_stream(self, stream: object) -> None:
        """What the stream of the training was given comes first: here it is done already."""

    @contextmanager
    def stream(self, stream: object) -> Iterator[None]:
        plain = Tensor.copy_

        def later(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
            assert non_blocking, "the host waits for this copy"
            self.begun += 1
            self.copies.append(lambda: plain(target, source))
            return target

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Tensor, "copy_", later)
            yield

    def launch(self, *size: int, device: str) -> None:
        """A kernel."""
        error, self.last_error = self.last_error, 0
        if error:
            raise RuntimeError(f"CUDA error {error}")

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:  # noqa: N802
        error = HOST_MEMORY_ALREADY_REGISTERED if address in self.registered else self.refusal
        self.last_error = error or self.last_error
        if not error:
            self.registered.append(address)
        return error

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        self.registered.remove(address)
        return 0


def stand_in_cuda(monkeypatch: pytest.MonkeyPatch, refusal: int = 0) -> StandInCuda:
    """From here on, whoever saves takes the host's tensors for those of a GPU."""
    cuda = StandInCuda(refusal)
    replacements: dict[str, Any] = {
        "Event": lambda: StandInEvent(cuda), "current_stream": object, "stream": cuda.stream, "cudart": lambda: cuda,
    }  # fmt: skip
    for name, replacement in replacements.items():
        monkeypatch.setattr(torch.cuda, name, replacement)
    monkeypatch.setattr(saver, "side_stream", lambda tensors: cuda)
    return cuda
