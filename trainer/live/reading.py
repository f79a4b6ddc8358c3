"""Reads a run as it is now: its facts, and the newest of what its trainer and its machine measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from trainer.checkpoint.line import is_segment, parse_row
from trainer.contract import metrics_key, run_key
from trainer.live.documents import MOST_TOLD_STEPS, ShownAlert, parse_alert, parse_sample
from trainer.live.facts import RunFacts, read_facts
from trainer.live.nodes import NodePulse, read_nodes_of
from trainer.store import ObjectInfo, ObjectStore
from trainer.telemetry.metrics import MOST_SEGMENT_BYTES, Row
from trainer.telemetry.samples import FOLDER

TAIL_SEGMENTS = 2
TAIL_STEPS = 2000  # before the newest checkpoint: the segments of the last minutes begin later


@dataclass(frozen=True, kw_only=True)
class Live:
    """A run as it was read at `now`, in Unix seconds."""

    now: float
    facts: RunFacts
    measured: Mapping[str, float]  # the newest value of each metric of the trainer
    sample: Mapping[str, float]  # and of its machine,
    sample_time: float  # at this time; 0: not known
    alerts: tuple[ShownAlert, ...]  # oldest first
    nodes: tuple[NodePulse, ...]  # of a run of several machines that goes on
    total_steps: int | None
    mark: str  # another one after each change of what a report shows
    skipped: tuple[str, ...]  # what no machine of ours writes, and why

    @property
    def seconds_left(self) -> float | None:
        """Until the last step at the present speed; None if the speed or the end is not known."""
        rate, saved = self.measured.get("speed/images_per_second", 0.0), self.facts.saved
        if not self.total_steps or saved is None or not saved.batch or not 0 < rate < math.inf:
            return None
        return max(0, self.total_steps - self.facts.step) * saved.batch / rate


def read_live(store: ObjectStore, run_id: str, now: float) -> Live:
    """Read the run. All that there may be of it is optional. Raises StoreError."""
    facts, odd = read_facts(store, run_id), list[str]()
    attempt = max(facts.attempts, facts.pulse.attempt if facts.pulse else 0)
    since = facts.saved.step - TAIL_STEPS if facts.saved and facts.saved.attempt == attempt else 0
    segments = _segments(store, metrics_key(run_id, attempt, ""), since) if attempt and not facts.finish else []
    rows = [row for info in segments[-TAIL_SEGMENTS:] for row in _segment_rows(store, info, odd)]
    pulse = facts.pulse
    sample, sample_time, alerts = (pulse.sample, pulse.sample_time, pulse.alerts) if pulse else ({}, 0.0, ())
    samples = _segments(store, run_key(run_id, f"{FOLDER}{attempt}/"), 0) if attempt else []
    if not facts.finish and not sample:  # no new one, or the heartbeat of an older version
        sampled = [row for info in samples[-TAIL_SEGMENTS:] for row in _segment_rows(store, info, odd)]
        sample, alerts = parse_sample(_newest_values(sampled)), alerts or _alerts_of(sampled)
        sample_time = max((row["time"] for row in sampled if "event" not in row), default=0.0)
    nodes = read_nodes_of(store, run_id, now, odd) if facts.team > 1 and not facts.finish else ()
    others = ("evaluations/", "done.json") if facts.exists else ()
    shown = [info.key for name in others for info in store.list(run_key(run_id, name))]
    parts = (facts.finish, facts.failed, facts.attempts, facts.saved, *segments[-1:], *samples[-1:], shown)
    return Live(
        now=now, facts=facts, measured=_newest_values(rows), sample=sample, sample_time=sample_time,
        alerts=alerts, nodes=nodes, total_steps=_total_steps(facts, rows), mark=repr(parts),
        skipped=(*facts.skipped, *odd),
    )  # fmt: skip


def _segments(store: ObjectStore, folder: str, since: int) -> Sequence[ObjectInfo]:
    """The segments in a folder, in order, at least those that begin at step `since` or later."""
    after = f"{folder}{since:08d}" if since > 0 else ""
    found = [info for info in store.list(folder, after) if is_segment(info.key.removeprefix(folder))]
    return found if found or not after else _segments(store, folder, 0)


def _segment_rows(store: ObjectStore, info: ObjectInfo, odd: list[str]) -> list[Row]:
    """The rows of a segment. What no trainer writes, as a line that was cut, is skipped and told in `odd`."""
    if info.bytes > MOST_SEGMENT_BYTES:
        odd.append(f"{info.key} has {info.bytes:,} bytes, and no trainer writes so many")
        return []
    rows, faults = list[Row](), list[str]()
    for line in store.get(info.key).splitlines():
        try:
            rows.append(parse_row(line))
        except ValueError as error:
            faults.append(str(error))
    if faults:
        odd.append(f"{len(faults)} lines of {info.key} are no measurements: {faults[0]}")
    return rows


def _newest_values(rows: Iterable[Row]) -> dict[str, float]:
    """The newest value of each metric."""
    values: dict[str, float] = {}
    for row in rows:
        values |= {name: float(value) for name, value in row.items() if "/" in name}
    return values


def _alerts_of(rows: Iterable[Row]) -> tuple[ShownAlert, ...]:
    found = list[ShownAlert]()
    for row in rows:
        if row.get("event") == "alert" and all(isinstance(row.get(name), str) for name in ("kind", "text")):
            found.append(parse_alert(row | {"level": str(row.get("level"))}))
    return tuple(found)


def _total_steps(facts: RunFacts, rows: Iterable[Row]) -> int | None:
    """Of all epochs, as the result says, else from the newest row that tells its epoch."""
    if facts.finish:
        return facts.finish.total_steps
    epochs = facts.saved.epochs if facts.saved else 0
    told = [(row["step"], row["train/epoch"]) for row in rows if 0 < row.get("train/epoch", 0) < math.inf]
    total = epochs * told[-1][0] / told[-1][1] if told else 0.0
    return round(total) if 0 < total < MOST_TOLD_STEPS and round(total) >= facts.step else None
