"""The signals that ask a trainer to save and end, or to save and go on."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(BaseException):
    """A stop was asked for in a place where nothing needs to be saved. Like KeyboardInterrupt, no error to handle."""


class Interruption:
    """What signals ask for, looked at everywhere: SIGTERM and SIGINT to save and end, SIGUSR1 to save and go on."""

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
