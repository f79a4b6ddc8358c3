"""What a running trainer tells the uploader of itself."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path

from trainer.contract import Phase
from trainer.process.channel import write_json

STATUS_SECONDS = 1.0


class Status:
    """`status.json`, from which the uploader makes the heartbeat: phase, step, and a counter that must move.

    With several processes also how many there are, and on how many machines.
    """

    def __init__(self, path: Path, *, writes: bool, nodes: int = 1, processes: int = 1):
        self.path, self.writes, self.lock = path, writes, threading.Lock()
        self.counts = {"nodes": nodes, "processes": processes} if processes > 1 else {}
        self.phase, self.step, self.progress, self.written = Phase.STARTING, 0, 0, 0.0

    def enter(self, phase: str) -> None:
        self.phase, self.progress, self.written = phase, 0, 0.0
        self.tick(0)

    def tick(self, amount: int = 1) -> None:
        """Count progress of the phase, from any thread; written at most once a second."""
        with self.lock:
            self.progress += amount
            if self.writes and (now := time.monotonic()) >= self.written + STATUS_SECONDS:
                status = {"phase": self.phase, "step": self.step, "progress": self.progress, **self.counts}
                with suppress(OSError):  # a full disk is no reason to stop
                    write_json(self.path, status)
                self.written = now
