"""A clock that jumps from event to event."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count


class Clock:
    def __init__(self, now: float):
        self.now = now
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.numbers = count()

    def at(self, time: float, event: Callable[[], None]) -> None:
        heapq.heappush(self.events, (max(time, self.now), next(self.numbers), event))

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        self.at(self.now + seconds, event)

    def run(self, is_over: Callable[[], bool], until: float) -> None:
        while self.events and self.events[0][0] <= until and not is_over():
            self.now, _, event = heapq.heappop(self.events)
            event()
