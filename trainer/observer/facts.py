"""What the observer reads of the store, seldom: what the run has cost, and what it lost at its last interruption."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trainer.contract import metrics_key, run_key
from trainer.store import NotFoundError, ObjectStore, open_store
from trainer.telemetry.metrics import read_segment
from trainer.telemetry.samples import FOLDER
from trainer.values import parse_object

FACTS_SECONDS = 60.0
MOST_SEGMENTS_READ = 20  # of samples, from the newest back
SILENT_TALLY_SECONDS = 600.0  # the guard counts every minute: after so long it does not run, and nobody knows


@dataclass
class StoreFacts:
    """Of one attempt that went on from a step of the attempt `origin` (0: from nothing). Read in threads.

    Both questions raise StoreError where the store fails. Then they are to be asked again.
    """

    uri: str
    run_id: str
    attempt: int
    origin: int
    budget_usd: float = 0.0  # 0: none
    told_usd: float = 0.0  # what the run had cost when an attempt before looked last: its stages were told
    reached: int | None = None  # the last step of the attempts before, also where it has to be done again

    def find_reached(self) -> None:
        """Read `reached`, if there were such attempts."""
        if self.origin:
            self.reached = last_step(open_store(self.uri), self.run_id, range(self.origin, self.attempt))

    def open_cost(self) -> Callable[[], Mapping[str, float]] | None:
        """What is to be asked every minute; None where nothing counts dollars."""
        store = open_store(self.uri)
        spec = read_some(store, run_key(self.run_id, "spec.json"))
        if not (budget_usd := as_dollars(spec.get("budget_usd"))):
            return None
        self.told_usd = last_cost(store, self.run_id, self.attempt)
        self.budget_usd = budget_usd
        return lambda: read_cost(store, self.run_id)


def last_step(store: ObjectStore, run_id: str, attempts: range) -> int:
    """The last step that these attempts have logged, as the names of their segments say. 0 if there is none."""
    names = [info.key.rpartition("/")[2] for one in attempts for info in store.list(metrics_key(run_id, one, ""))]
    return max((int(found[1]) for name in names if (found := re.match(r"[0-9]{8,15}-([0-9]{8,15})", name))), default=0)


def last_cost(store: ObjectStore, run_id: str, attempt: int) -> float:
    """The newest `cost/usd` of a sample of the attempts before this one; 0 if no newer segment than 20 has any."""
    folder = run_key(run_id, FOLDER)
    numbered = [
        (int(found[1]), int(found[2]), info)
        for info in store.list(folder)
        if (found := re.fullmatch(r"([0-9]{1,15})/([0-9]{1,15})\.jsonl", info.key.removeprefix(folder)))
    ]
    earlier = sorted((one for one in numbered if one[0] < attempt), key=lambda one: one[:2], reverse=True)
    for _, _, info in earlier[:MOST_SEGMENTS_READ]:
        if counted := [row["cost/usd"] for row in read_segment(store, info) if "cost/usd" in row]:
            return as_dollars(counted[-1])
    return 0.0


def read_cost(store: ObjectStore, run_id: str) -> dict[str, float]:
    """`cost/usd`: what the machines of the run have cost by now, as the guard has counted it. {} if it has not."""
    spend = read_some(store, run_key(run_id, "spend.json"))
    counted = as_dollars(spend.get("at"))
    machines = spend.get("machines")
    if not counted or not isinstance(machines, list):
        return {}
    now = min(time.time(), counted + SILENT_TALLY_SECONDS)
    return {"cost/usd": sum(machine_usd(one, now) for one in machines if isinstance(one, dict))}


def machine_usd(machine: Mapping[str, Any], now: float) -> float:
    """As `infra.run.spend` counts it."""
    names = ("ended", "priced", "launched", "usd_per_hour", "usd_before")
    known = {name: as_dollars(machine.get(name)) for name in names}
    hours = ((known["ended"] or now) - (known["priced"] or known["launched"])) / 3600
    return max(0.0, known["usd_before"] + hours * known["usd_per_hour"])


def read_some(store: ObjectStore, key: str) -> dict[str, Any]:
    """The object; {} if there is none, or nobody of ours wrote it. Raises StoreError."""
    try:
        return parse_object(store.get(key))
    except (NotFoundError, ValueError):
        return {}


def as_dollars(value: object) -> float:
    """A number from 0 on, of dollars or seconds; 0 for anything else."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e12 else 0.0
