"""What GPUs draw, added up: joules from the cards' own counters where they have one, else watts over time."""

from __future__ import annotations

from dataclasses import dataclass

JOULES_PER_KWH = 3.6e6
MOST_GAP_SECONDS = 60.0  # between two samples; over more, nobody knows what was drawn
MOST_WATTS = 1e5  # of all GPUs of a machine


@dataclass
class Energy:
    """The energy of one attempt, from 0. Times are of `time.monotonic()`."""

    kwh: float = 0.0
    watts: float | None = None
    joules: float | None = None
    at: float = 0.0

    def add(self, watts: float | None, at_monotonic: float, joules: float | None = None) -> float:
        """Count what was drawn since the last call, and return the kWh so far.

        `joules` is a counter of the cards, exact whatever lies between two calls. Without it, and where it went back,
        the mean of both `watts` counts, unless more than MOST_GAP_SECONDS lie between them.
        """
        seconds = at_monotonic - self.at
        drawn = -1.0 if joules is None or self.joules is None else joules - self.joules
        if not 0 <= drawn <= MOST_WATTS * seconds:
            is_known = watts is not None and self.watts is not None and 0 < seconds <= MOST_GAP_SECONDS
            drawn = ((watts or 0.0) + (self.watts or 0.0)) / 2 * seconds if is_known else 0.0
        self.kwh += drawn / JOULES_PER_KWH
        self.watts, self.joules, self.at = watts, joules, at_monotonic
        return self.kwh
