"""Has rows measured by workers, within limits. A crash, a hang or a broken GPU costs one row.

Standard library only: nothing of CUDA is in this process, so nothing of it can take this process along.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.gpu.descendants import VARIABLE, kill_marked
from benchmarks.gpu.rows import ENVIRON, Row

START_SECONDS = 90.0  # what a worker may take until its first row, and between two
LEAST_SECONDS = 15.0  # with less left, no worker is started
TAIL_BYTES = 1500
NO_TIME = "no time was left"
Message = dict[str, Any]
Record = Callable[[Row, Message], None]


class Worker:
    """A process that measures rows. A context manager: in the end it is killed, and so is all that it started.

    What it started is found by a variable that it inherits, so a session of its own does not save it.
    """

    def __init__(self, command: Sequence[str], environ: Mapping[str, str], log: Path):
        self.log, self.said = log, log.stat().st_size if log.exists() else 0
        self.mark = uuid.uuid4().hex
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True,
                env={**os.environ, **environ, VARIABLE: self.mark},
            )  # fmt: skip
        self.buffer = b""

    def receive(self, until: float) -> Message:
        """The next message. Raises TimeoutError at `until`, in time.monotonic(), and EOFError when it has ended."""
        assert self.process.stdout is not None
        while b"\n" not in self.buffer:
            if not select.select([self.process.stdout], [], [], max(0.0, until - time.monotonic()))[0]:
                raise TimeoutError
            if not (piece := os.read(self.process.stdout.fileno(), 1 << 16)):
                raise EOFError
            self.buffer += piece
        line, _, self.buffer = self.buffer.partition(b"\n")
        message: Message = json.loads(line)
        return message

    def tail(self) -> str:
        """The end of what it said on standard error."""
        with self.log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self.said, size - TAIL_BYTES))
            return file.read().decode(errors="replace")

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        kill_marked(self.mark)
        self.process.communicate()


def measure_rows(
    rows: Sequence[Row],
    command: Callable[[Sequence[str]], Sequence[str]],
    *,
    environ: Mapping[str, str],
    log: Path,
    end: float,
    started: Callable[[Message], None],
    record: Record,
    patience: float = 1.0,
) -> None:
    """Measure rows in their order, until `end` in time.monotonic(). Every row gets a record: found, failed or left out.

    `command(names)` is a worker's command line for rows. `started` hears what a worker says of its machine. `patience`
    stretches the limit of each row, for slow machines.
    """
    for process, group in groupby(rows, key=lambda row: row.process):
        left = list(group)
        while left:
            if end - time.monotonic() < LEAST_SECONDS:
                for row in left:
                    record(row, {"not_measured": NO_TIME})
                break
            names = [row.name for row in left]
            with Worker(command(names), {**environ, **ENVIRON.get(process, {})}, log) as worker:
                left = list(_serve(worker, left, end, started, record, patience))


def _serve(
    worker: Worker, left: list[Row], end: float, started: Callable[[Message], None], record: Record, patience: float
) -> Iterator[Row]:
    """Take what a worker measures. Yields the rows that it has not measured and that are not lost.

    The row at which the whole bench ends has not failed: it is recorded as not measured, as those behind it.
    """
    waiting, current, limit = list(left), None, time.monotonic() + START_SECONDS * patience
    reason = ""
    while waiting and not reason:
        try:
            message = worker.receive(min(limit, end))
        except EOFError:
            reason = f"its process ended with {describe_exit(worker.process.wait())}"
        except TimeoutError:
            if end < limit:
                break
            reason = f"over its limit of {current.seconds if current else START_SECONDS:g} s"
        else:
            if "started" in message:
                started(message["started"])
            elif "begin" in message:
                current = waiting[0]
                limit = time.monotonic() + current.seconds * patience
            else:
                record(waiting.pop(0), message["found"])
                current, limit = None, time.monotonic() + START_SECONDS * patience
    if reason and (current or waiting == left):  # else it broke after a row that it has told of
        record(waiting.pop(0), {"error": reason, "stderr": worker.tail()})
    yield from waiting


def describe_exit(code: int) -> str:
    """`SIGKILL` or `exit code 3`."""
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
