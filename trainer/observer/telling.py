"""Who hears of an alert: the console, the rows of samples, `observed.json` behind the heartbeat, and the webhook."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from trainer.alerts import HEALTH_KINDS, Alert
from trainer.alerts.delivery import Delivery
from trainer.alerts.filter import AlertFilter
from trainer.telemetry.health import Observation
from trainer.telemetry.metrics import Row
from trainer.text import say

NEWEST_ALERTS = 20  # in observed.json
TEXT_LETTERS = 400  # of an alert
OBSERVED_BYTES = 16_000  # of observed.json, which every heartbeat has


class Telling:
    """The alerts of one attempt."""

    def __init__(self, run_id: str, attempt: int, delivery: Delivery | None):
        self.run_id, self.attempt, self.delivery = run_id, attempt, delivery
        self.filter = AlertFilter()
        self.newest: deque[dict[str, Any]] = deque(maxlen=NEWEST_ALERTS)
        self.count = 0

    def tell(self, found: Observation, step: int) -> list[Row]:
        """Tell it, unless it was told lately. Returns its row for the samples, or none.

        The console hears only what is wrong: trainer and supervisor tell there how a run begins and ends.
        """
        text = found.text if len(found.text) <= TEXT_LETTERS else f"{found.text[: TEXT_LETTERS - 1]}…"
        alert = Alert(
            kind=found.kind, level=found.level, text=text, run_id=self.run_id, step=step, time=round(time.time(), 3),
            id=f"{self.attempt}-{self.count + 1}",
        )  # fmt: skip
        if not self.filter.admits(alert):
            return []
        self.count += 1
        if alert.kind in HEALTH_KINDS:
            say(f"{alert.level}: {text}")
        if self.delivery is not None:
            self.delivery.send(alert)
        row = {"step": step, "time": alert.time, "kind": alert.kind, "level": alert.level, "text": text}
        self.newest.append({"id": alert.id} | row)
        return [row | {"event": "alert"}]

    def observed(self, sample: Mapping[str, float]) -> dict[str, Any]:
        """What the heartbeat is to have: the newest sample, with its time, and as many of the newest alerts as fit."""
        found: dict[str, Any] = {"sample": dict(sample), "alerts": list(self.newest)}
        while len(json.dumps(found)) > OBSERVED_BYTES and found["alerts"]:
            found["alerts"] = found["alerts"][1:]
        return found
