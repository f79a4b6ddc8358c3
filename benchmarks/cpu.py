"""CPU seconds of this process and of the children that it has waited for, in interleaved rounds."""

from __future__ import annotations

import math
import multiprocessing
import resource
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from benchmarks.images import Images, visits
from benchmarks.peers import Contender

LEAST_SECONDS = 1.5  # of CPU time in a measurement


class Measurable(Protocol):
    def measure(self, epochs: int) -> tuple[int, float]:
        """Images, and the CPU seconds that they took."""
        ...


@dataclass(frozen=True)
class Run:
    """A contender on its images, from storage to batches of `pixels`."""

    contender: Contender
    images: Images
    pixels: int = 224

    def measure(self, epochs: int) -> tuple[int, float]:
        todo = visits(self.images, epochs)
        before = cpu_seconds()
        for _ in self.contender(self.images, todo, self.pixels):
            pass
        assert not multiprocessing.active_children(), "workers that still run are not counted"
        return len(todo), cpu_seconds() - before


def cpu_seconds() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def interleaved(runs: Mapping[str, Measurable], rounds: int) -> dict[str, list[float]]:
    """CPU microseconds per image of each run, one per round; a first call, not counted, warms up and says how long.

    What a run costs without any image, the start of workers above all, is taken off: training starts them once an hour.
    """
    epochs = {name: math.ceil(LEAST_SECONDS / run.measure(1)[1]) for name, run in runs.items()}
    found: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        for name in list(runs)[:: -1 if number % 2 else 1]:  # there and back: a drift of the machine cancels out
            _, start = runs[name].measure(0)
            count, seconds = runs[name].measure(epochs[name])
            found[name].append((seconds - start) / count * 1e6)
    return found


def ratio(above: list[float], below: list[float]) -> float:
    """The median over rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def rate(microseconds: list[float]) -> float:
    """Images/s per core."""
    return 1e6 / statistics.median(microseconds)
