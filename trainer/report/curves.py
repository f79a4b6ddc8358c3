"""Curves: what a metric did, in as many points as a chart can show, with the lowest and highest values between them.

Pure functions of rows. Nothing here draws.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from trainer.telemetry.metrics import Row

MOST_POINTS = 400  # a chart cannot show more; neighbours become one point
MOST_PAUSE_SECONDS = 60.0  # between two samples: the rest was a pause, or a clock that jumped

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Extreme:
    """The lowest or highest value of a metric, and where it was."""

    value: float
    at: float


@dataclass(frozen=True)
class MetricCurve:
    """One metric. The arrays have one item for each point, at most MOST_POINTS; all values are finite."""

    at: Numbers  # steps or seconds
    mean: Numbers
    low: Numbers  # of the values that the point stands for
    high: Numbers
    lowest: Extreme
    highest: Extreme
    last: float

    @property
    def is_thinned(self) -> bool:
        """Whether a point stands for several values."""
        return bool(np.any(self.low < self.high))


def curve_of(at: Sequence[float] | Numbers, values: Sequence[float]) -> MetricCurve | None:
    """The curve of a metric whose values were measured at these places; None where none is finite."""
    places, found = np.asarray(at, np.float64), np.asarray(values, np.float64)
    kept = np.isfinite(found)
    places, found = places[kept], found[kept]
    if not len(found):
        return None
    starts = np.arange(0, len(found), -(-len(found) // MOST_POINTS))
    counts = np.diff([*starts, len(found)])
    low, high = int(found.argmin()), int(found.argmax())
    return MetricCurve(
        at=np.add.reduceat(places, starts) / counts,
        mean=np.add.reduceat(found, starts) / counts,
        low=np.minimum.reduceat(found, starts),
        high=np.maximum.reduceat(found, starts),
        lowest=Extreme(float(found[low]), float(places[low])),
        highest=Extreme(float(found[high]), float(places[high])),
        last=float(found[-1]),
    )


def curves_of(
    rows: Iterable[Row], names: Iterable[str], places: Iterable[float] | None = None
) -> dict[str, MetricCurve]:
    """The curves of those metrics that the rows have, by name. Without `places` they lie at the steps of the rows."""
    rows = list(rows)
    at = np.asarray(list(places) if places is not None else [row["step"] for row in rows], np.float64)
    alike: dict[tuple[str, ...], list[int]] = {}  # the rows that have the same metrics: a run has few kinds
    for index, row in enumerate(rows):
        alike.setdefault(tuple(row), []).append(index)

    @cache
    def having(kinds: tuple[tuple[str, ...], ...]) -> tuple[Numbers, Sequence[Row]]:
        indices = sorted(chain.from_iterable(alike[kind] for kind in kinds))
        return at[indices], [rows[index] for index in indices]

    curves: dict[str, MetricCurve | None] = {}
    for name in names:
        places_of, found = having(tuple(kind for kind in alike if name in kind))
        curves[name] = curve_of(places_of, [row[name] for row in found])
    return {name: curve for name, curve in curves.items() if curve is not None}


def series(rows: Iterable[Row], name: str) -> tuple[list[float], list[float]]:
    """The steps and values of one metric. A long series is averaged down to MOST_POINTS."""
    curve = curves_of(rows, [name]).get(name)
    return (curve.at.tolist(), curve.mean.tolist()) if curve else ([], [])


def machine_seconds(samples: Sequence[Row]) -> Numbers:
    """For how long the run had a machine at each sample. Pauses, as between attempts, are left out."""
    times = np.asarray([row["time"] for row in samples], np.float64)
    steps = np.clip(np.diff(times, prepend=times[:1]), 0.0, MOST_PAUSE_SECONDS)
    starts = [i for i in range(1, len(samples)) if samples[i]["attempt"] != samples[i - 1]["attempt"]]
    steps[starts] = 0.0
    return np.cumsum(steps)


def done_resolution(rows: Sequence[Row], plan: MetricCurve | None) -> MetricCurve | None:
    """Pixels by step, as measured: the ends of each stretch of one size. None where nothing is known.

    Rows of older versions do not have it: up to the first that does, the plan counts.
    """
    measured = [row for row in rows if "train/resolution" in row]
    steps = np.asarray([row["step"] for row in measured], np.float64)
    sizes = np.asarray([row["train/resolution"] for row in measured], np.float64)
    changes = np.flatnonzero(sizes[1:] != sizes[:-1])
    ends = sorted({*range(len(sizes))[:1], *changes, *(changes + 1), *range(len(sizes))[-1:]})
    at, pixels = steps[ends].tolist(), sizes[ends].tolist()
    before = [row["step"] for row in rows if not at or ("train/loss" in row and row["step"] < at[0])]
    if before and plan:
        old = curve_until(plan, max(before))
        at, pixels = [*old.at.tolist(), *at], [*old.mean.tolist(), *pixels]
    return curve_of(at, pixels)


def curve_until(curve: MetricCurve, end: float) -> MetricCurve:
    """The part of a curve of single values up to `end`, and one point there."""
    kept = max(1, int(np.searchsorted(curve.at, end, side="right")))
    found = curve_of([*curve.at[:kept], max(end, curve.at[0])], [*curve.mean[:kept], curve.mean[kept - 1]])
    assert found is not None
    return found
