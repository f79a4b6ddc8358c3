"""The signals that ask a trainer to save and end, or to save and go on."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SECONDS = 45.0  # how long an attempt that was told to stop waits for its last checkpoint
END_SECONDS = 3600.0  # how long a finished one waits, unless TRAINER_DEADLINE says another time


class Interrupted(BaseException):
    """A stop was asked for where nothing needs to be saved. Like KeyboardInterrupt, this is no error to handle."""


class Interruption:
    """What signals ask for: SIGTERM and SIGINT to save and end, SIGUSR1 to save and go on."""

    def __init__(self) -> None:
        self.requested = self.raising = self.save_requested = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.handle)
        signal.signal(signal.SIGUSR1, self.handle_save)

    def handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if self.raising:
            raise Interrupted

    def handle_save(self, number: int, frame: FrameType | None) -> None:
        self.save_requested = True

    def take_save_request(self) -> bool:
        """Whether a save was asked for since the last call."""
        asked, self.save_requested = self.save_requested, False
        return asked

    @contextmanager
    def raises(self) -> Iterator[None]:
        """Inside, a stop raises Interrupted at once: for work that holds nothing worth saving."""
        self.raising = True
        try:
            if self.requested:
                raise Interrupted
            yield
        finally:
            self.raising = False


class Deadline:
    """Until when an attempt waits for its last checkpoint, in monotonic seconds. A signal brings it nearer.

    Call it again and again while waiting: each call says through `alive` that the attempt still lives.
    """

    def __init__(self, deadline: str, interruption: Interruption, *, alive: Callable[[], None]):
        """`deadline` in Unix seconds, "" for END_SECONDS from now; at least STOP_SECONDS are left in any case."""
        seconds = float(deadline) - time.time() if deadline else END_SECONDS
        self.at = time.monotonic() + max(seconds, STOP_SECONDS)
        self.interruption, self.alive = interruption, alive

    def __call__(self) -> float:
        self.alive()
        if self.interruption.requested:
            self.at = min(self.at, time.monotonic() + STOP_SECONDS)
        return self.at
