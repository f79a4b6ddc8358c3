"""What the observer reads of the store, seldom: what the run has cost, and what it lost at its last interruption."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trainer.contract import metrics_key, run_key
from trainer.store import NotFoundError, ObjectStore, StoreError, open_store
from trainer.values import parse_object

FACTS_SECONDS = 60.0
SILENT_TALLY_SECONDS = 600.0  # the guard counts every minute: after so long it does not run, and nobody knows


@dataclass
class StoreFacts:
    """Of one attempt that went on from a step of the attempt `origin` (0: from nothing). Read in a thread."""

    uri: str
    run_id: str
    attempt: int
    origin: int
    budget_usd: float = 0.0  # 0: none
    reached: int | None = None  # the last step of the attempts before, also where it has to be done again

    def open(self) -> Callable[[], Mapping[str, float]] | None:
        """What is to be asked every minute; None where nothing counts dollars."""
        store = open_store(self.uri)
        if self.origin:
            self.reached = last_step(store, self.run_id, range(self.origin, self.attempt))
        spec = read_some(store, run_key(self.run_id, "spec.json"))
        self.budget_usd = as_dollars(spec.get("budget_usd"))
        return (lambda: read_cost(store, self.run_id)) if self.budget_usd else None


def last_step(store: ObjectStore, run_id: str, attempts: range) -> int:
    """The last step that these attempts have logged, as the names of their segments say. 0 if there is none."""
    names = [info.key.rpartition("/")[2] for one in attempts for info in store.list(metrics_key(run_id, one, ""))]
    return max((int(found[1]) for name in names if (found := re.match(r"[0-9]{8,15}-([0-9]{8,15})", name))), default=0)


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
    """The object; {} if there is none, the store fails, or nobody of ours wrote it."""
    try:
        return parse_object(store.get(key))
    except (NotFoundError, StoreError, ValueError):
        return {}


def as_dollars(value: object) -> float:
    """A number from 0 on, of dollars or seconds; 0 for anything else."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e12 else 0.0
