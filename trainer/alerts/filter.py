"""Which alerts are told: nothing twice, no complaint of one level more than once in a quarter of an hour, no flood.

Both filters know the time from the alerts alone. A clock that jumps lets at most one alert through too early.
"""

from __future__ import annotations

from collections import deque

from trainer.alerts import HEALTH_KINDS, Alert

REPEAT_SECONDS = 900.0  # from one alert to the next of the same kind and level
TOLD_REMEMBERED = 256  # alerts that are never told again
MESSAGES_IN_AN_HOUR = 30
NEVER_LIMITED = ("finished", "failed")
QUIETENED = frozenset({*HEALTH_KINDS, "best"})  # in a short run, each second has a new best score


class AlertFilter:
    """Remembers what was told."""

    def __init__(self) -> None:
        self.last: dict[tuple[str, str], float] = {}  # the time of the last alert of each quietened kind, by level
        self.told: deque[tuple[str, str]] = deque(maxlen=TOLD_REMEMBERED)

    def admits(self, alert: Alert) -> bool:
        """Whether this alert is to be told. It then counts as told."""
        if alert.kind in QUIETENED:
            if abs(alert.time - self.last.get((alert.kind, alert.level), float("-inf"))) < REPEAT_SECONDS:
                return False
            self.last[alert.kind, alert.level] = alert.time
            return True
        if (alert.kind, alert.text) in self.told:
            return False
        self.told.append((alert.kind, alert.text))
        return True


class RateLimit:
    """Counts messages. The end of a run is always told."""

    def __init__(self, most: int = MESSAGES_IN_AN_HOUR) -> None:
        self.most = most
        self.sent: deque[float] = deque(maxlen=most)

    def admits(self, alert: Alert) -> bool:
        """Whether a message may be sent for this alert. It then counts as sent."""
        if alert.kind in NEVER_LIMITED:
            return True
        if len(self.sent) == self.most and abs(alert.time - self.sent[0]) < 3600:
            return False
        self.sent.append(alert.time)
        return True
