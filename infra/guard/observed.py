"""What the run's observer tells in heartbeat.json. Machines write it, so it is checked, cut and made printable."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infra.run.values import printable

MOST_OBSERVED = 100  # of a heartbeat; an honest one has 20
ALERT_LETTERS = 200
# The guard sees these itself, also where the machine is gone, or tells nothing any more.
SEEN_OTHERWISE = frozenset({"started", "interrupted", "resumed", "finished", "failed", "budget", "hung"})


@dataclass(frozen=True, order=True)
class ObservedAlert:
    """Later ones are greater. `text` is one printable line."""

    attempt: int
    number: int  # within the attempt
    text: str


def observed_alerts(heartbeat: Mapping[str, Any]) -> tuple[ObservedAlert, ...]:
    """The alerts that nobody but the machine can know, the oldest first. What is none is left out."""
    observed = heartbeat.get("observed")
    alerts = observed.get("alerts") if isinstance(observed, dict) else None
    found = set()
    for one in alerts[:MOST_OBSERVED] if isinstance(alerts, list) else ():
        if not isinstance(one, dict):
            continue
        id, kind, text = (str(one.get(name, ""))[:1000] for name in ("id", "kind", "text"))
        numbers = parse_alert_id(id)
        if numbers and re.fullmatch(r"[a-z-]{1,20}", kind) and kind not in SEEN_OTHERWISE:
            found.add(ObservedAlert(*numbers, printable(f"{kind}: {' '.join(text.split())}", ALERT_LETTERS)))
    return tuple(sorted(found))


def parse_alert_id(id: str) -> tuple[int, int] | None:
    """Attempt and number of `<attempt>-<number>`; None if it is no id of an alert."""
    parts = re.fullmatch(r"([0-9]{1,9})-([0-9]{1,9})", id, re.ASCII)
    return (int(parts[1]), int(parts[2])) if parts else None
