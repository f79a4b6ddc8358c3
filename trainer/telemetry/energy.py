"""What GPUs draw, added up: joules from the cards' own counters where they have one, else watts over time."""

from __future__ import annotations

from dataclasses import dataclass

JOULES_PER_KWH = 3.6e6
MOST_GAP_SECONDS = 60.0  # between two samples; over more, nobody knows what was drawn


@dataclass
class Energy:
    """The energy of one attempt, from 0. Times are of `time.monotonic()`."""

    kwh: float = 0.0
    watts: float | None = None
    joules: float | None = None
    at: float = 0.0

    def add(self, watts: float | None, at_monotonic: float, joules: float | None = None) -> float:
        """Count what was drawn since the last call, and return the kWh so far.

        `joules` is a counter of the cards, exact whatever lies between two calls; one that went back adds nothing.
        Without it the mean of both `watts` counts, unless more than MOST_GAP_SECONDS lie between them.
        """
        seconds = at_monotonic - self.at
        if joules is not None and self.joules is not None:
            self.kwh += max(0.0, joules - self.joules) / JOULES_PER_KWH
        elif watts is not None and self.watts is not None and 0 < seconds <= MOST_GAP_SECONDS:
            self.kwh += (self.watts + watts) / 2 * seconds / JOULES_PER_KWH
        self.watts, self.joules, self.at = watts, joules, at_monotonic
        return self.kwh
