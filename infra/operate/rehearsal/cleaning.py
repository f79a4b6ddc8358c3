"""Signals and lost terminals: whatever ends a rehearsal, it cleans up first. It speaks only where somebody listens."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ANSWER = b"\ncleaning up, so that nothing bills: some minutes (Ctrl-C once more leaves the rest to the guards)\n"


class Interruptions:
    """The first signal that asks to end raises KeyboardInterrupt, whichever it is. After that, cleaning goes on.

    Then a signal is answered with a line. Only Ctrl-C, and only for the second time, ends the cleaning, too.
    """

    def __init__(self) -> None:
        self.is_cleaning, self.is_put_off, self.asked = False, False, 0

    def answer(self, number: int, frame: FrameType | None) -> None:
        if not self.is_cleaning:
            self.is_cleaning = True
            raise KeyboardInterrupt
        self.is_put_off, self.asked = True, self.asked + (number == signal.SIGINT)
        if self.asked > 1:
            raise KeyboardInterrupt
        with suppress(OSError):  # nobody listens
            os.write(2, ANSWER)

    @contextmanager
    def put_off(self) -> Iterator[None]:
        """The block is a cleaning. A signal that came meanwhile raises KeyboardInterrupt at its end."""
        self.is_cleaning = True
        yield
        self.is_cleaning = False
        if self.is_put_off:
            raise KeyboardInterrupt


@contextmanager
def heard_signals() -> Iterator[Interruptions]:
    """Until the end of the block, signals do what Interruptions says."""
    found = Interruptions()
    before = {number: signal.signal(number, found.answer) for number in ENDING_SIGNALS}
    try:
        yield found
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def mute_if_unheard() -> None:
    """Where the terminal or the pipe is gone, nothing is written any more: a print that fails must not end the
    cleaning.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.write("\n")
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
