"""What the charts of a report show: curves, and what they lie along. Small for any run. Nothing here draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainer.report.curves import MetricCurve, curves_of, done_resolution, machine_seconds
from trainer.report.panels import MACHINE_CHARTS, STEP_CHARTS, TRAINING_CHARTS, Panel
from trainer.report.summary import restarts
from trainer.telemetry.metrics import Row


@dataclass(frozen=True, kw_only=True)
class Ruler:
    """What the charts of a group lie along: its end, where attempts begin, and how its numbers are called."""

    end: float
    marks: Sequence[float]
    unit: str  # "step", or a unit of time
    size: float = 1.0  # of one unit, in what the curves lie along
    steps_per_epoch: float | None = None

    def place(self, at: float) -> str:
        number = f"{at / self.size:,.0f}" if self.unit == "step" else f"{at / self.size:,.1f}"
        return f"step {number}" if self.unit == "step" else f"{number} {self.unit}"


@dataclass(frozen=True, kw_only=True)
class Plotted:
    """Curves by metric: those along the steps, and those along the machine's time."""

    of_steps: Mapping[str, MetricCurve]
    steps: Ruler
    of_machine: Mapping[str, MetricCurve]
    times: Ruler


def plotted_of(
    rows: Sequence[Row], samples: Sequence[Row], plan: Mapping[str, MetricCurve], steps_per_epoch: float | None
) -> Plotted:
    """What the rows and samples of a run show. `plan` has curves of what the run plans, by step."""
    curves = curves_of(rows, _metrics(TRAINING_CHARTS | STEP_CHARTS))
    last = max((int(row["step"]) for row in rows), default=0)
    curves |= plan if rows else {}
    if rows and (done := done_resolution(rows, plan.get("plan/resolution"))):
        curves["done/resolution"] = done
    measured = [row for row in samples if "event" not in row]
    seconds = machine_seconds(measured).tolist()
    return Plotted(
        of_steps=curves,
        steps=Ruler(end=max(1, last), marks=restarts(rows), unit="step", steps_per_epoch=steps_per_epoch),
        of_machine=curves_of(measured, _metrics(MACHINE_CHARTS), seconds),
        times=_time_ruler(measured, seconds),
    )


def _metrics(charts: Mapping[str, Sequence[Panel]]) -> set[str]:
    return {metric for panels in charts.values() for panel in panels for metric in panel.lines | panel.right}


def _time_ruler(samples: Sequence[Row], seconds: Sequence[float]) -> Ruler:
    """`seconds` is where each sample lies."""
    begins = [seconds[i] for i in range(1, len(samples)) if samples[i]["attempt"] != samples[i - 1]["attempt"]]
    end = seconds[-1] if seconds else 0.0
    unit, size = ("min", 60.0) if end < 7200 else ("h", 3600.0)
    return Ruler(end=max(1.0, end), marks=begins, unit=unit, size=size)
