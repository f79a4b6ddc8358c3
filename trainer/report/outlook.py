"""What lies ahead of a run: the time that is left, and the dollars, where a guard on AWS counts them. No I/O here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.telemetry.metrics import Row
from trainer.telemetry.samples import kwh_of
from trainer.values import as_list, as_number, as_object, as_time

MOST_SECONDS_LEFT = 1e9  # 30 years: more is no estimate
LAST_SPEEDS = 5  # so many speeds say what the present one is


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """None is unknown. A finished run has nothing left."""

    as_of: float | None  # unix seconds of the newest that the run said
    seconds_left: float | None  # at the present speed
    spent_usd: float | None
    projected_usd: float | None  # at its end, at the present speed and price
    budget_usd: float | None
    kwh: float | None  # that the GPUs drew

    @property
    def end(self) -> float | None:
        """Unix seconds."""
        return None if self.as_of is None or self.seconds_left is None else self.as_of + self.seconds_left


NOTHING_AHEAD = Outlook(as_of=None, seconds_left=None, spent_usd=None, projected_usd=None, budget_usd=None, kwh=None)


def check_spend(spend: dict[str, Any]) -> None:
    """Raises ValueError if what is used of the guard's `spend.json` is not what it writes. All of it may be missing."""
    _positive("usd", spend.get("usd", 0))
    as_time("at", spend.get("at", 0))
    for machine in as_list("machines", spend.get("machines", [])):
        _positive("usd_per_hour", as_object("a machine", machine).get("usd_per_hour", 0))
        as_time("ended", machine.get("ended", 0))


def check_budget(spec: dict[str, Any]) -> None:
    """As `check_spend`, for `spec.json`."""
    _positive("budget_usd", spec.get("budget_usd", 0))


def _positive(name: str, value: object) -> float:
    if (number := as_number(name, value)) < 0:
        raise ValueError(f"{name} is {number}, which is below 0")
    return number


def look_ahead(
    rows: Sequence[Row], samples: Sequence[Row], config: Mapping[str, Any],
    spend: Mapping[str, Any], spec: Mapping[str, Any], *, steps_left: int | None,
) -> Outlook:  # fmt: skip
    """`steps_left` is None where nobody knows the last step."""
    seconds = seconds_for(steps_left, rows, config)
    as_of = max((row["time"] for row in (*rows[-1:], *samples[-1:])), default=None)
    kwh = kwh_of(samples)
    return Outlook(
        as_of=as_of,
        seconds_left=seconds,
        spent_usd=spend.get("usd"),
        projected_usd=None if as_of is None or seconds is None else _usd_at(spend, as_of + seconds),
        budget_usd=spec.get("budget_usd") or None,
        kwh=kwh if kwh is not None and math.isfinite(kwh) else None,
    )


def _usd_at(spend: Mapping[str, Any], end: float) -> float | None:
    """What the machines that run will have cost until `end`, in Unix seconds. None: none runs, or nobody has counted.

    The guard has counted until `at`.
    """
    rates = [one.get("usd_per_hour", 0) for one in spend.get("machines", []) if not one.get("ended")]
    if not rates or "usd" not in spend or "at" not in spend:
        return None
    return float(spend["usd"] + max(0.0, end - spend["at"]) / 3600 * sum(rates))


def seconds_for(steps: int | None, rows: Sequence[Row], config: Mapping[str, Any]) -> float | None:
    """How long so many steps take at the present speed; None where that is unknown."""
    batch, speeds = config.get("global_batch_size"), list[float]()
    for row in reversed(rows):
        if 0 < row.get("speed/images_per_second", 0) < math.inf:
            speeds.append(row["speed/images_per_second"])
        if len(speeds) == LAST_SPEEDS:
            break
    if steps is None or not speeds or type(batch) is not int or not 0 < batch < 1 << 53:
        return None
    seconds = steps * batch / sorted(speeds)[len(speeds) // 2]
    return min(seconds, MOST_SECONDS_LEFT)
