"""Other work for the machine: as many processes as it has cores, and one more, each computing without a pause."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

BUSY = "while True: sum(range(100_000))"


@contextmanager
def every_core_busy() -> Iterator[None]:
    cores = len(os.sched_getaffinity(0))
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(cores + 1)]
    try:
        yield
    finally:
        for process in others:
            process.kill()
            process.wait()
