"""A stand-in for CUDA's streams, events and pinned memory: a GPU that is as far behind the host as a test says.

Tensors are the host's. What a test sees is the order: what the GPU was given, what it has done, and who waited for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from trainer.checkpoint import saver
from trainer.telemetry import step_log

HOST_MEMORY_ALREADY_REGISTERED = 712


class StandInEvent:
    """Passed when the GPU has done what it was given before. Without a record it is passed."""

    def __init__(self, cuda: StandInCuda):
        self.cuda, self.number = cuda, 0

    def record(self) -> None:
        self.number = self.cuda.give(lambda: None)

    def query(self) -> bool:
        return self.cuda.done >= self.number

    def synchronize(self) -> None:
        if not self.query():
            self.cuda.waits += 1
            self.cuda.finish(self.number)


class StandInCuda:
    """Does its work, which is copies on the side stream, and passes events, when it is told to or waited for."""

    def __init__(self, refusal: int = 0):
        self.refusal, self.registered = refusal, list[int]()
        self.last_error = 0  # of the runtime: the next launch tells it, and clears it
        self.work: deque[Callable[[], object]] = deque()
        self.given, self.done, self.copies, self.waits = 0, 0, 0, 0
        self.side_is_behind = False  # whether the side stream waits for all that was copied into the device's buffer

    def give(self, work: Callable[[], object]) -> int:
        """Its number."""
        self.work.append(work)
        self.given += 1
        return self.given

    def finish(self, number: int | None = None) -> None:
        """All work, or up to this number."""
        while self.done < (self.given if number is None else number):
            self.work.popleft()()
            self.done += 1

    def event_behind(self, tensor: Tensor) -> StandInEvent:
        event = StandInEvent(self)
        event.record()
        return event

    def copy_within(self, targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
        """A copy by the training's stream, into the buffer. The host has done it on return."""
        self.side_is_behind = False
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source)

    def wait_stream(self, stream: object) -> None:
        """What the stream of the training was given so far comes before what the side stream is given from here on."""
        self.side_is_behind = True

    @contextmanager
    def stream(self, stream: object) -> Iterator[None]:
        plain = Tensor.copy_

        def later(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
            assert non_blocking, "the host waits for this copy"
            assert self.side_is_behind, "the side stream may read the buffer before it is full"
            self.copies += 1
            self.give(lambda: plain(target, source))
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
    """From here on, whoever saves or logs takes the host's tensors for those of a GPU."""
    cuda = StandInCuda(refusal)
    replacements: dict[str, Any] = {
        "Event": lambda: StandInEvent(cuda), "current_stream": object, "stream": cuda.stream, "cudart": lambda: cuda,
    }  # fmt: skip
    for name, replacement in replacements.items():
        monkeypatch.setattr(torch.cuda, name, replacement)
    monkeypatch.setattr(torch, "_foreach_copy_", cuda.copy_within)
    monkeypatch.setattr(saver, "side_stream", lambda tensors: cuda)
    monkeypatch.setattr(step_log, "event_behind", cuda.event_behind)
    return cuda
