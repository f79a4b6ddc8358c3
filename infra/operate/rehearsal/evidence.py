"""What the runs of a rehearsal left, and what follows from it: the step of a resume, its bits, and lines of the log.

Functions on values; `read_rows` and `read_log` get them from AWS.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infra.operate.documents import parse_line, segment_steps
from infra.operate.runs import ExplainedBucket
from infra.operate.session import explained
from infra.run.values import check_whole
from trainer.contract import run_key

SEGMENT_BYTES_READ = 64 << 20  # at most, of one segment of metrics
RowOfStep = Mapping[str, Any]
# Of a row, what follows from the weights and the images alone. The rest is times and speeds.
EXACT = r"(train|val|val_ema|val_swa)/.*"


@dataclass(frozen=True)
class LoggedLine:
    """A line of the container, or of the boot scripts, as CloudWatch has it."""

    stream: str  # <run>/<instance id>/<start of the container, or boot>
    at: float  # Unix seconds
    text: str

    @property
    def machine(self) -> str:
        return self.stream.split("/")[1]

    @property
    def step(self) -> int:
        """The step that the line tells of; 0 if it tells of none."""
        found = re.match(r"step ([0-9]{1,15})/", self.text)
        return int(found[1]) if found else 0


def read_rows(bucket: ExplainedBucket, run_id: str) -> dict[int, list[RowOfStep]]:
    """The rows of metrics of each attempt, in the order of their steps. Raises ValueError for what is no row."""
    folder, found = run_key(run_id, "metrics/"), dict[int, list[RowOfStep]]()
    for one in bucket.list(folder):
        attempt, _, _ = one.key.removeprefix(folder).partition("/")
        if attempt.isdecimal() and segment_steps(one.key) != (0, 0):
            lines = (bucket.read(one.key, SEGMENT_BYTES_READ) or b"").splitlines()
            found.setdefault(int(attempt), []).extend(map(parse_line, lines))
    for rows in found.values():
        rows.sort(key=lambda row: check_whole("step", row.get("step")))
    return found


def read_log(client: Any, group: str, run_id: str, since: float = 0.0) -> list[LoggedLine]:
    """The lines of a run that were written at `since` or later, by CloudWatch's order."""
    with explained(f"the log group {group}"):
        pages = client.get_paginator("filter_log_events").paginate(
            logGroupName=group, logStreamNamePrefix=f"{run_id}/", startTime=int(since * 1000)
        )
        return [
            LoggedLine(event["logStreamName"], event["timestamp"] / 1000, event["message"].rstrip("\n"))
            for page in pages for event in page["events"]
        ]  # fmt: skip


@dataclass(frozen=True)
class Resumed:
    """From where an attempt went on."""

    step: int
    origin: int  # the attempt whose checkpoint it was; 0: from nothing


def resumed(rows: Sequence[RowOfStep]) -> Resumed | None:
    """What the first row of an attempt says. None before there is one."""
    start = next((row for row in rows if row.get("event") == "start"), None)
    return Resumed(check_whole("step", start["step"]), check_whole("origin", start["origin"])) if start else None


@dataclass(frozen=True)
class Compared:
    """Steps that two attempts have computed, from the same state."""

    steps: tuple[int, ...]
    values: int
    different: tuple[str, ...]  # "train/loss of step 7: 2.3 and 2.4"


def compare_steps(lost: Sequence[RowOfStep], redone: Sequence[RowOfStep]) -> Compared:
    """Compare every number that follows from weights and images, to the last bit."""
    before, after = steps_of(lost), steps_of(redone)
    shared = sorted(before.keys() & after.keys())
    values, different = 0, []
    for step in shared:
        for name in sorted({name for row in (before[step], after[step]) for name in row if re.fullmatch(EXACT, name)}):
            values += 1
            if (pair := (before[step].get(name), after[step].get(name)))[0] != pair[1]:
                different.append(f"{name} of step {step}: {pair[0]} and {pair[1]}")
    return Compared(tuple(shared), values, tuple(different))


def steps_of(rows: Iterable[RowOfStep]) -> dict[int, RowOfStep]:
    return {row["step"]: row for row in rows if "train/loss" in row}


def lines_that_differ(rows: Sequence[RowOfStep], lines: Sequence[LoggedLine]) -> tuple[int, list[str]]:
    """The number of lines that an attempt must have printed, and those of them that did not arrive once.

    The trainer prints one line for each row that has a speed. `lines` are those of the attempt's container.
    """
    due = [row["step"] for row in rows if "speed/images_per_second" in row and "train/loss" in row]
    came = Counter(line.step for line in lines if line.step)
    return len(due), [f"step {step}: {came[step]} times" for step in due if came[step] != 1]
