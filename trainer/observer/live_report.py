"""The report while a run goes on: made by a process that gives way to all others, every few minutes."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from trainer.text import say

LIVE_REPORT_SECONDS = 300.0  # from the beginning of one report to that of the next
LONGEST_REPORT_SECONDS = 120.0
MOST_SHARE = 0.1  # of the time in which reports are made: the pauses grow with them
LONGER_PAUSE = 2.0  # after each report that took too long
REPORT_NICENESS = 19


class LiveReport:
    """At most one process at a time. The folder is its own.

    Segments of the run that one report has read are `kept` in another folder, so that the next one reads only new ones.
    """

    def __init__(self, folder: Path, kept: Path, environ: Mapping[str, str]):
        self.folder, self.kept, self.environ = folder, kept, environ
        self.began = time.monotonic()
        self.pause = LIVE_REPORT_SECONDS
        self.has_failed = False
        self.process: subprocess.Popen[bytes] | None = None

    def start_if_due(self, *, has_news: bool) -> bool:
        """Whether one was started: not sooner than the pause after the last one began, and only if there is news."""
        if self.process is not None or not has_news or time.monotonic() < self.began + self.pause:
            return False
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "trainer.report", "--into", str(self.folder), "--keep", str(self.kept)],
            env=dict(self.environ),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        with contextlib.suppress(OSError):  # it has ended already
            os.setpriority(os.PRIO_PROCESS, self.process.pid, REPORT_NICENESS)
        return True

    def finished(self) -> dict[str, bytes]:
        """The files of a report that has just been made, the page last; {} where there is none.

        One that takes too long is ended, and the pause before the next one grows each time. One that fails is left out,
        and that is said once: the next one may work, and the end of the run makes its own.
        """
        if self.process is None:
            return {}
        seconds = time.monotonic() - self.began
        if self.process.poll() is None:
            if seconds > LONGEST_REPORT_SECONDS:
                self.pause = max(self.pause * LONGER_PAUSE, seconds / MOST_SHARE)
                self.kill()
                self._complain(f"it took more than {LONGEST_REPORT_SECONDS:.0f} s")
            return {}
        self.pause = max(LIVE_REPORT_SECONDS, seconds / MOST_SHARE)
        worked, self.process = self.process.returncode == 0, None
        if not worked:
            self._complain("`make report` says why")
            return {}
        paths = sorted(self.folder.glob("[!.]*.*"), key=lambda path: (path.suffix == ".html", path.name))
        return {path.name: path.read_bytes() for path in paths}

    def _complain(self, why: str) -> None:
        if not self.has_failed:
            say(f"the report could not be made while training goes on: {why}")
        self.has_failed = True

    def forget(self) -> None:
        """Remove what was kept, after the end of the run: nobody reads it there again."""
        self.kill()
        shutil.rmtree(self.kept, ignore_errors=True)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
