"""Draws one metric of several runs into one chart, as SVG for the page that compares them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from trainer.report.charts import dress, name_numbers, to_svg
from trainer.report.comparison import RUNS_LIGHT, line_of
from trainer.report.curves import series
from trainer.report.page import LIGHT
from trainer.telemetry.metrics import Row

FEW_POINTS = 30  # so many are marked each


@dataclass(frozen=True, kw_only=True)
class RunCurves:
    """What a run measured. `steps_per_epoch` is None where nobody knows."""

    rows: Sequence[Row]
    steps_per_epoch: float | None


OVERLAYS = {  # metric -> title, scale, whether the axis begins at 0
    "val/top1": ("Top-1 on validation (%)", 100.0, False),
    "val_ema/top1": ("Top-1 of the average, EMA (%)", 100.0, False),
    "val_swa/top1": ("Top-1 of the average, SWA (%)", 100.0, False),
    "val/loss": ("Loss on validation", 1.0, False),
    "train/loss": ("Loss of training", 1.0, False),
    "train/lr": ("Learning rate", 1.0, True),
    "speed/images_per_second": ("Images per second", 1.0, True),
}


def draw_overlays(runs: Sequence[RunCurves]) -> dict[str, str]:
    """Title -> SVG, for each metric that a run has. Along epochs, or along steps where a run does not tell epochs."""
    charts = {}
    for metric, (title, _, _) in OVERLAYS.items():
        lines = {number: points for number, run in enumerate(runs) if (points := series(run.rows, metric))[0]}
        if lines:
            charts[title] = _overlay(runs, metric, lines)
    return charts


def _overlay(runs: Sequence[RunCurves], metric: str, lines: Mapping[int, tuple[list[float], list[float]]]) -> str:
    """The chart of these lines, each by the number of its run: steps and values."""
    title, scale, is_from_zero = OVERLAYS[metric]
    in_epochs = all(runs[number].steps_per_epoch for number in lines)
    figure = Figure(figsize=(4.3, 2.9), facecolor=LIGHT["paper"])
    axis = figure.subplots()
    figure.subplots_adjust(left=0.13, right=0.96, top=0.885, bottom=0.12)
    end = 1.0
    for number, (steps, values) in lines.items():
        in_one = (runs[number].steps_per_epoch if in_epochs else None) or 1.0
        along = [step / in_one for step in steps]
        colour, style = line_of(number)
        axis.plot(
            along, [value * scale for value in values], style, color=RUNS_LIGHT[colour], linewidth=1.5,
            marker="o" if len(along) <= FEW_POINTS else "", markersize=3, zorder=3, clip_on=False,
        )  # fmt: skip
        end = max(end, *along)
    axis.set_xlim(0, end)
    dress(axis, title, is_from_zero=is_from_zero)
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axis.xaxis.set_major_formatter("{x:,.0f}")
    name_numbers(axis, ["epoch" if in_epochs else "step"])
    return to_svg(figure, LIGHT | RUNS_LIGHT)
