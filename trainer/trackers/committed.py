"""The rows of a run that nothing undoes: what a tracker may get, since it takes no step back.

A step may be done again until a later checkpoint is committed, and a validation may still join the row of the newest
one. So the rows below the newest checkpoint's step count, and all of them once the run is finished.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from trainer.checkpoint.line import list_manifests
from trainer.contract import UserError, attempt_key, parse_manifest_key, run_key
from trainer.store import NotFoundError, ObjectStore
from trainer.telemetry.metrics import Row, Segments, begins_of, last_attempt, rows_by_attempt, rows_until
from trainer.telemetry.samples import read_samples
from trainer.values import as_whole, parse_object

FINISHED, FAILED = "finished", "failed"


@dataclass(frozen=True)
class Committed:
    """What is settled of a run at one time."""

    rows: list[Row]  # by step, each once, without events
    began: float | None  # Unix seconds of the first row, which tell apart runs of one name; None: there is no row yet
    ended: str  # FINISHED or FAILED; "": it goes on, or may


class CommittedRows:
    """Reads them again and again. A segment is read once."""

    def __init__(self, store: ObjectStore, run_id: str) -> None:
        self.store, self.run_id = store, run_id
        self.segments: Segments = {}
        self.samples: Segments = {}
        self.seen: tuple[str, str] | None = None

    def read(self) -> Committed | None:
        """None where no commit has come since the last call. Raises StoreError."""
        ended = self.ended()  # first, since it comes last
        newest = next(iter(list_manifests(self.store, self.run_id)[1]), "")
        if (ended, newest) == self.seen:
            return None
        rows = self.rows(newest, is_finished=ended == FINISHED)
        self.seen = (ended, newest)
        steps = [row for row in rows if "event" not in row]
        sampled = with_samples(steps, read_samples(self.store, self.run_id, self.samples))
        return Committed(sampled, rows[0]["time"] if rows else None, ended)

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


def with_samples(rows: Sequence[Row], samples: Sequence[Row]) -> list[Row]:
    """Each row with the newest sample since the row before. A value that the row has itself stays."""
    waiting = sorted((one for one in samples if "event" not in one), key=lambda one: (one["step"], one["time"]))
    found, at = list[Row](), 0
    for row in rows:
        sampled: Row = {}
        while at < len(waiting) and waiting[at]["step"] <= row["step"]:
            sampled |= {name: value for name, value in waiting[at].items() if "/" in name}
            at += 1
        found.append(sampled | row)
    return found
