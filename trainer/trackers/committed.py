"""The rows of a run that nothing undoes: what a tracker may get, since it takes no step back.

A step may be done again until a later checkpoint is committed, and a validation may still join the row of the newest
one. So the rows below the newest checkpoint's step count, and all of them once the run is finished.

Samples reach the store up to a minute later than the rows of their time. So a row waits for them, for three minutes at
most.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import PurePosixPath
from typing import Any

from trainer.checkpoint.line import list_manifests
from trainer.contract import UserError, attempt_key, parse_manifest_key, run_key
from trainer.store import NotFoundError, ObjectStore
from trainer.telemetry.metrics import Row, Segments, begins_of, last_attempt, rows_by_attempt, rows_until
from trainer.telemetry.samples import read_samples
from trainer.values import as_whole, parse_object

FINISHED, FAILED = "finished", "failed"
UNSAMPLED_SECONDS = 180.0  # a row that is older waits for no samples: an observer may have died


@dataclass(frozen=True)
class Committed:
    """What is settled of a run at one time."""

    rows: list[Row]  # by step, each once, without events
    began: float | None  # Unix seconds of the first row, which tell apart runs of one name; None: there is no row yet
    ended: str  # FINISHED or FAILED; "": it goes on, or may, or rows of it wait for their samples


class CommittedRows:
    """Reads them again and again. A segment is read once."""

    def __init__(self, store: ObjectStore, run_id: str) -> None:
        self.store, self.run_id = store, run_id
        self.segments: Segments = {}
        self.samples: Segments = {}
        self.seen: tuple[str, str] | None = None

    def read(self) -> Committed | None:
        """None where no commit has come since the last call, and no row waits. Raises StoreError."""
        ended = self.ended()  # first, since it comes last
        newest = next(iter(list_manifests(self.store, self.run_id)[1]), "")
        if (ended, newest) == self.seen:
            return None
        rows = self.rows(newest, is_finished=ended == FINISHED)
        is_whole = ended == FAILED or (ended == FINISHED and self.has("done.json"))  # it comes after the last sample
        samples = samples_of(rows, read_samples(self.store, self.run_id, self.samples))
        steps = [row for row in rows if "event" not in row]
        ready = steps if is_whole else until_unsampled(steps, samples, time.time())
        waits = len(ready) < len(steps)
        self.seen = None if waits else (ended, newest)
        return Committed(with_samples(ready, samples), rows[0]["time"] if rows else None, "" if waits else ended)

    def rows(self, newest: str, *, is_finished: bool) -> list[Row]:
        """With the rows of events."""
        if not (newest or is_finished):
            return []
        attempts = rows_by_attempt(self.store, self.run_id, self.segments)
        if is_finished:
            return rows_until(attempts, last_attempt(self.store, self.run_id, begins_of(attempts)), float("inf"))
        attempt, step = parse_manifest_key(newest) or (0, 0)
        return [row for row in rows_until(attempts, attempt, step) if row["step"] < step or "event" in row]

    def ended(self) -> str:
        """How the run ended; "" if it goes on."""
        if any(self.has(name) for name in ("done.json", "result.json")):
            return FINISHED
        try:
            failed = parse_object(self.store.get(run_key(self.run_id, "failed.json")))
            attempt = as_whole("attempt", failed.get("attempt"))
        except (NotFoundError, ValueError):
            return ""
        folder = str(PurePosixPath(attempt_key(self.run_id, 1)).parent)
        names = [PurePosixPath(info.key).stem for info in self.store.list(f"{folder}/")]
        return FAILED if all(int(name) <= attempt for name in names if name.isdecimal()) else ""

    def has(self, name: str) -> bool:
        try:
            self.store.info(run_key(self.run_id, name))
        except NotFoundError:
            return False
        return True


def check_exists(store: ObjectStore, run_id: str) -> None:
    """Raises UserError if the store has nothing of the run, StoreError."""
    if next(iter(store.list(run_key(run_id, ""))), None) is None:
        raise UserError(f"{store.uri} has no run {run_id!r}: check the names (RUN=, STORE=); `make runs` lists them")


def config_of(store: ObjectStore, run_id: str) -> dict[str, Any]:
    """The config of the run; {} where there is none that can be read. Raises StoreError."""
    try:
        return parse_object(store.get(run_key(run_id, "config.json")))
    except (NotFoundError, ValueError):
        return {}


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Its options with their values as text: ("optim.peak_lr", "0.4")."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value)


def samples_of(rows: Sequence[Row], samples: Sequence[Row]) -> list[Row]:
    """Those that belong to steps: no alerts, and none from before their attempt went on from its checkpoint."""
    begins = {row["attempt"]: row["step"] for row in rows if row.get("event") == "start" and "attempt" in row}
    return [one for one in samples if "event" not in one and one["step"] >= begins.get(one["attempt"], 0)]


def until_unsampled(rows: Sequence[Row], samples: Sequence[Row], now: float) -> list[Row]:
    """The rows before the first one, by step, for which a sample may still come."""
    newest = max(samples, key=lambda one: float(one["time"]), default={"step": 0, "time": 0.0})

    def is_ready(row: Row) -> bool:
        has_all = row["step"] < newest["step"] and row["time"] <= newest["time"]
        return has_all or bool(row["time"] < now - UNSAMPLED_SECONDS)

    return list(takewhile(is_ready, rows))


def with_samples(rows: Sequence[Row], samples: Sequence[Row]) -> list[Row]:
    """Each row with the newest sample since the row before. A value that the row has itself stays."""
    waiting = sorted(samples, key=lambda one: (one["step"], one["time"]))
    found, at = list[Row](), 0
    for row in rows:
        sampled: Row = {}
        while at < len(waiting) and waiting[at]["step"] <= row["step"]:
            sampled |= {name: value for name, value in waiting[at].items() if "/" in name}
            at += 1
        found.append(sampled | row)
    return found
