"""Samples: what the machine did, every ten seconds, as rows of JSON lines beside the metrics of the steps.

A row has the step and the phase at that time, and flat slash names (`gpu/utilization`, `energy/kwh`). A row with
`"event": "alert"` is something that was told. Unlike metrics, samples count whether or not their steps were done again:
the machine did that work. No torch here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path

from trainer.contract import run_key
from trainer.store import ObjectInfo, ObjectStore
from trainer.telemetry.metrics import Row, Segments, read_segments

SAMPLE_SECONDS = 10.0
FOLDER = "telemetry/"


def samples_key(run_id: str, attempt: int, number: int) -> str:
    """`runs/<run_id>/telemetry/<attempt>/<number>.jsonl`: one segment, immutable."""
    return run_key(run_id, f"{FOLDER}{attempt}/{number:06d}.jsonl")


def read_samples(store: ObjectStore, run_id: str, known: Segments | None = None, kept: Path | None = None) -> list[Row]:
    """All rows of all attempts, in the order of attempts and time. Each has "attempt". Raises StoreError.

    `known` and `kept` are as for `read_segments`.
    """
    folder = run_key(run_id, FOLDER)
    found: list[tuple[int, ObjectInfo]] = []
    for info in store.list(folder):
        name = re.fullmatch(r"([0-9]{1,15})/[0-9]{1,15}\.jsonl", info.key.removeprefix(folder))
        if name:
            found.append((int(name[1]), info))
    segments = read_segments(store, [info for _, info in found], known, kept)
    rows = [
        row | {"attempt": attempt} for (attempt, _), segment in zip(found, segments, strict=True) for row in segment
    ]
    return sorted(rows, key=lambda row: (row["attempt"], row["time"]))


def alerts_of(samples: Iterable[Row]) -> list[Row]:
    """The rows of alerts, with `kind`, `level` and `text`."""
    return [row for row in samples if row.get("event") == "alert"]


def kwh_of(samples: Iterable[Row]) -> float | None:
    """What the GPUs of all attempts drew, in kWh; None where nothing measured it. Each attempt counts from 0."""
    totals: dict[int, float] = {}
    for row in samples:
        kwh = row.get("energy/kwh", -1.0)
        if 0 <= kwh < math.inf:
            totals[row["attempt"]] = max(totals.get(row["attempt"], 0.0), kwh)
    return sum(totals.values()) if totals else None
