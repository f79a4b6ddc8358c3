"""What the supervisor does on signals and spot notices. Standard library only."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable
from types import FrameType

from trainer.contract import DRAIN_SECONDS
from trainer.process import spot
from trainer.process.children import TrainerProcess
from trainer.text import say


class Signals:
    """SIGTERM, SIGINT, SIGHUP and spot notices. The first is passed on; a second SIGINT ends everything at once."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self.first = math.inf
        self.reason = "stopping"
        self.trainer: TrainerProcess | None = None
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup has it ignored
                signal.signal(number, self.handle)

    def seconds_since(self) -> float:
        """Seconds since the first signal; minus infinity before there was one."""
        return time.monotonic() - self.first

    def handle(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)
        if len(self.received) == 1:
            self.first = time.monotonic()
            what = "finishing the step and saving it" if self.trainer else "ending as soon as the store allows"
            say(f"{self.reason}: {what} (Ctrl-C again: leave at once)")
            if self.trainer is not None:
                self.trainer.interrupt()
        elif self.received.count(signal.SIGINT) > 1:
            say("second Ctrl-C: leaving at once, without a last save")
            if self.trainer is None:
                raise KeyboardInterrupt
            self.trainer.kill()

    def notice(self, action: str, when: str) -> None:
        """The machine will be gone in two minutes: have the work saved, go on, and act as on SIGTERM in time.

        The second save makes up for the first one's age. If it does not get through, the first one is there.
        """
        self.reason = f"spot notice: this machine is reclaimed at {when}"
        seconds = spot.seconds_to_train(when, time.time())
        if seconds and self.trainer is not None and self.trainer.save():
            say(f"{self.reason}: saving now, going on for {seconds:.0f} s, and then saving again")
            time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGTERM)

    def rebalance(self) -> None:
        """The machine may be reclaimed soon: have the work saved, and go on."""
        if self.trainer is not None and self.trainer.save():
            say("rebalance recommendation: this machine may be reclaimed soon: saving now, and going on")

    def upload_until(self, patience_seconds: float) -> Callable[[], float]:
        """The deadline (time.monotonic()) of an upload that begins now. A signal leaves it half of the drain's rest."""
        began = time.monotonic()

        def until() -> float:
            if not self.received:
                return began + patience_seconds
            start = max(began, self.first)
            return min(began + patience_seconds, start + max(5.0, (DRAIN_SECONDS - (start - self.first)) / 2))

        return until
