"""What each file of tests took: measured by conftest.py in each half, shown by whoever shows the end."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping

SECONDS_FILE = "TESTS_SECONDS_FILE"  # names the file for the numbers of a half that does not show them itself
Taken = Mapping[str, Mapping[str, float]]  # by file: wall, cpu, tests


def cpu_seconds() -> float:
    """Of this process and of the children that it has waited for; not of containers, nor of what runs on."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def table(taken: Taken) -> list[str]:
    """A line for each file, the slowest first, and the sum."""
    total: defaultdict[str, float] = defaultdict(float)
    lines = ["   wall s    CPU s  tests"]
    for file, values in sorted(taken.items(), key=lambda item: -item[1]["wall"]):
        lines.append(row(values, file))
        for name, value in values.items():
            total[name] += value
    return [*lines, row(total, "in all")]


def row(values: Mapping[str, float], file: str) -> str:
    return f"{values['wall']:9.1f} {values['cpu']:8.1f} {values['tests']:6.0f}  {file}"
