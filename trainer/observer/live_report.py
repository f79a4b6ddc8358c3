"""The report while a run goes on: made by a process that gives way to all others, every few minutes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

REPORT_SECONDS = 300.0  # from the beginning of one report to that of the next
LONGEST_REPORT_SECONDS = 120.0
REPORT_NICENESS = 19


class LiveReport:
    """At most one process at a time. The folder is its own."""

    def __init__(self, folder: Path, environ: Mapping[str, str]):
        self.folder, self.environ = folder, environ
        self.began = time.monotonic()
        self.process: subprocess.Popen[bytes] | None = None

    def start_if_due(self, *, has_news: bool) -> bool:
        """Whether one was started: not sooner than REPORT_SECONDS after the last one, and only if there is news."""
        if self.process is not None or not has_news or time.monotonic() < self.began + REPORT_SECONDS:
            return False
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "trainer.report", "--into", str(self.folder)], env=dict(self.environ),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        with contextlib.suppress(OSError):  # it has ended already
            os.setpriority(os.PRIO_PROCESS, self.process.pid, REPORT_NICENESS)
        return True

    def finished(self) -> dict[str, bytes]:
        """The files of a report that has just been made, the page last; {} where there is none.

        One that takes too long is ended, and one that fails is left out: the next one may work, and the end of the run
        makes its own.
        """
        if self.process is None:
            return {}
        if self.process.poll() is None:
            if time.monotonic() > self.began + LONGEST_REPORT_SECONDS:
                self.kill()
            return {}
        worked, self.process = self.process.returncode == 0, None
        if not worked:
            return {}
        paths = sorted(self.folder.glob("[!.]*.*"), key=lambda path: (path.suffix == ".html", path.name))
        return {path.name: path.read_bytes() for path in paths}

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
