"""Which checkpoints a run has, and which of them lie on its line: the way from the newest one back to step 0.

After a rewind, checkpoints and metrics of the steps beyond stay in the store, beside the line. No torch here, so that
whoever only reads starts in an instant.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trainer.contract import (
    HEAD_FILE,
    Lease,
    UserError,
    checkpoint_key,
    metrics_key,
    parse_manifest_key,
)
from trainer.manifest import newest_manifest
from trainer.store import NotFoundError, ObjectStore
from trainer.values import (
    MOST_TIME,
    MOST_VALUE,
    MOST_WHOLE,
    as_text,
    as_time,
    as_whole,
    check_known,
    is_measured,
    parse_object,
    show,
)

Begin = Mapping[str, Any]  # the first row of an attempt's metrics: it goes on from `step` of attempt `origin`


@dataclass(frozen=True)
class Lineage:
    """Of each attempt on the way, the last step that counts."""

    ends: Mapping[int, float]
    is_whole: bool  # False where metrics are missing: attempts before the first of `ends` may be on the line, too

    def has(self, manifest: str) -> bool:
        """Whether the checkpoint of this manifest's key lies on the line."""
        attempt, step = parse_manifest_key(manifest) or (0, 0)
        first = min(self.ends)
        if attempt < first:
            return not self.is_whole and step <= self.ends[first]
        return step <= self.ends.get(attempt, -1)


def follow_back(begin_of: Callable[[int], Begin | None], attempt: int, step: float) -> Lineage:
    """The line from a step of an attempt back. `begin_of` knows how attempts began, or not (None)."""
    ends = {attempt: step}
    while (begin := begin_of(attempt)) is not None and 0 < begin["origin"] < attempt:
        attempt, step = begin["origin"], min(step, begin["step"])
        ends[attempt] = step
    return Lineage(ends, is_whole=begin is not None)


def read_line(store: ObjectStore, run_id: str, manifest: str) -> Lineage:
    """The line from a checkpoint back. Raises StoreError."""
    attempt, step = parse_manifest_key(manifest) or (0, 0)
    return follow_back(lambda number: read_begin(store, run_id, number), attempt, step)


def read_begin(store: ObjectStore, run_id: str, attempt: int) -> Begin | None:
    """How an attempt began; None if its metrics do not tell. Raises StoreError."""
    folder = metrics_key(run_id, attempt, "")
    first = next((info for info in store.list(folder) if is_segment(info.key.removeprefix(folder))), None)
    try:
        row = parse_row(store.get(first.key).partition(b"\n")[0]) if first is not None else {}
    except ValueError:
        return None
    return row if row.get("event") == "start" else None


def parse_row(line: bytes) -> dict[str, Any]:
    """A row of metrics. Raises ValueError if a trainer did not write it."""
    return check_row(parse_object(line))


def check_row(row: dict[str, Any]) -> dict[str, Any]:
    """The row, which has a time from here on. Raises ValueError if a trainer did not write it."""
    step, time = row.get("step"), row.setdefault("time", 0.0)
    if type(step) is not int or type(time) is not float or not (0 <= step <= MOST_WHOLE and 0 <= time <= MOST_TIME):
        as_whole("step", check_known(row, "step"))
        as_time("time", time)
    if "event" in row:
        as_text("event", row["event"])
        for name in ("attempt", "origin"):
            as_whole(name, row.get(name, 1))
    if row.get("event") == "start":
        check_known(row, "origin")
    for name, value in row.items():
        if type(value) is float and -MOST_VALUE <= value <= MOST_VALUE:
            continue  # nearly all, so they are asked first: of a long run there are a million
        if "/" in name and not is_measured(value):
            raise ValueError(f"{show(name)} is {show(value)}, not a number")
    return row


def is_segment(name: str) -> bool:
    """Whether a file among an attempt's metrics is a trainer's. File managers leave others there."""
    return bool(re.fullmatch(r"[^/.][^/]*\.jsonl", name))


def read_lease(store: ObjectStore, run_id: str) -> Lease | None:
    """The run's lease; None if it is missing or damaged. Raises StoreError if the store fails."""
    try:
        return Lease.from_json(store.get(checkpoint_key(run_id, HEAD_FILE))).of_run(run_id)
    except (NotFoundError, ValueError):
        return None


def list_manifests(store: ObjectStore, run_id: str) -> tuple[Lease | None, list[str]]:
    """The lease, and the keys of all manifests: first the newest checkpoint, then the one before, then by age.

    Those by age may lie beside the line, as `read_line` tells.
    """
    lease = read_lease(store, run_id)
    listed = [info.key for info in store.list(checkpoint_key(run_id, "manifest/")) if parse_manifest_key(info.key)]
    by_age = sorted(listed, key=lambda key: parse_manifest_key(key) or (0, 0), reverse=True)
    named = [newest_manifest(lease, listed)] + ([lease.newest, lease.previous] if lease else [])
    return lease, list(dict.fromkeys(key for key in named + by_age if key))


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a run, as keys of their manifests."""

    run_id: str
    lease: Lease | None
    newest: str
    keys: list[str]  # by attempt and step, the last first
    line: Lineage  # of the newest

    @classmethod
    def find(cls, store: ObjectStore, run_id: str) -> Checkpoints:
        """Raises UserError if there is none, StoreError."""
        lease, keys = list_manifests(store, run_id)
        if not keys:
            raise UserError(f"run {run_id!r} has no checkpoint in {store.uri}: check the names (RUN=, STORE=)")
        by_age = sorted(keys, key=lambda key: parse_manifest_key(key) or (0, 0), reverse=True)
        return cls(run_id, lease, keys[0], by_age, read_line(store, run_id, keys[0]))

    def role(self, key: str) -> str:
        """What a checkpoint is to the run: what HEAD.json says of it, else superseded, else left by a rewind."""
        roles = [name for name in ("previous", "best") if self.lease and getattr(self.lease, name) == key]
        roles[:0] = ["newest"] * (key == self.newest)
        return ", ".join(roles) or ("superseded" if self.line.has(key) else "left")

    def of_step(self, step: int, attempt: int | None = None, *, asked: str) -> str:
        """The checkpoint of a step: the last one on the line, else the last one beside it. Raises UserError."""
        there = {key: parse_manifest_key(key) or (0, 0) for key in self.keys}
        found = [key for key, (number, at) in there.items() if at == step and attempt in (None, number)]
        if not found:
            steps = ", ".join(map(str, sorted({at for _, at in there.values()})))
            raise UserError(
                f"{asked}: run {self.run_id!r} has no checkpoint of it: choose one of {steps}, which `list` shows"
            )
        return next((key for key in found if self.line.has(key)), found[0])
