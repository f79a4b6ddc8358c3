"""TensorBoard's copy of a segment of metrics or samples: the same numbers as an event file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from trainer.upload.records import field, file_name, float32, head, value_record


def event_file(segment: bytes, name: str) -> tuple[str, bytes]:
    """Name and content of the event file of a segment, whose JSON lines have "step", "time" and metrics.

    A resumed attempt purges the steps that the attempt before it did in vain. Raises ValueError, LookupError,
    TypeError or struct.error for what is no segment.
    """
    rows = [json.loads(line) for line in segment.splitlines()]
    written = rows[-1]["time"]
    goes_on = rows[0].get("event") == "start" and rows[0]["step"] > 0
    return file_name(written, name), head(written, rows[0]["step"] + 1 if goes_on else None) + scalars(rows)


def sample_file(segment: bytes, name: str) -> tuple[str, bytes]:
    """The same of a segment of samples, of which several may have one step: each metric has its last value there.

    So has a step that the segment before has, too: TensorBoard drops it. Raises what `event_file` raises.
    """
    rows = [json.loads(line) for line in segment.splitlines()]
    written, steps = rows[-1]["time"], dict[int, dict[str, Any]]()
    for row in rows:
        steps[row["step"]] = steps.get(row["step"], {}) | row
    return file_name(written, name), head(written, rows[0]["step"]) + scalars(steps.values())


def scalars(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """The records of all metrics of these rows."""
    return b"".join(
        value_record(row["time"], row["step"], field(1, metric.encode()) + b"\x15" + float32(row[metric]))
        for row in rows
        for metric in row
        if "/" in metric
    )
