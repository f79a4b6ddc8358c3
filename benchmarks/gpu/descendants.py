"""Ends what a worker has started, in sessions of its own, too: uploader and trainer of a run have such ones.

Everything that a worker starts inherits a variable that names the worker; so a process is found by its environment,
whoever its parent is by now. Standard library only.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

VARIABLE = "BENCH_GPU_WORKER"
PATIENCE_SECONDS = 5.0  # a process in a call of the driver may take a moment to end


def marked(mark: str) -> list[int]:
    """The living processes that have this mark, without the caller."""
    wanted, found = f"{VARIABLE}={mark}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is another user's
            if wanted in (folder / "environ").read_bytes().split(b"\0") and int(folder.name) != os.getpid():
                found.append(int(folder.name))
    return found


def kill_marked(mark: str) -> None:
    """SIGKILL for all that have this mark but the caller, until none is left or the patience is over."""
    end = time.monotonic() + PATIENCE_SECONDS
    while (found := marked(mark)) and time.monotonic() < end:
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
