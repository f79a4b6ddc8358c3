"""Draws the curves of a run from its rows: as PNG for files, and as SVG for the page.

It uses matplotlib without pyplot, which has global state. The table CHARTS says which chart shows which metric.
"""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from trainer.report.page import LIGHT
from trainer.report.summary import restarts
from trainer.telemetry.metrics import Row

MOST_POINTS = 400  # a chart cannot show more; neighbours are averaged


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes: its metrics, and how they are drawn."""

    title: str
    lines: dict[str, tuple[str, str, str]]  # metric -> label in the legend, colour, line style
    scale: float = 1.0
    is_from_zero: bool = False


def _by_split(
    name: str, style: str = "-", labels: Sequence[str] = ("train", "validation", "EMA", "SWA")
) -> dict[str, tuple[str, str, str]]:
    splits = (("train", "train"), ("val", "val"), ("val_ema", "ema"), ("val_swa", "swa"))
    return {f"{split}/{name}": (label, colour, style) for (split, colour), label in zip(splits, labels, strict=True)}


CHARTS = {
    "loss": [Panel(title="Loss", lines=_by_split("loss"))],
    "accuracy": [
        Panel(
            title="Accuracy (%)", scale=100.0, lines=_by_split("top1") | _by_split("top5", ":", ("", "top-5", "", ""))
        )
    ],
    "learning-rate": [Panel(title="Learning rate", lines={"train/lr": ("", "train", "-")}, is_from_zero=True)],
    "throughput": [
        Panel(title="Images per second", lines={"speed/images_per_second": ("", "train", "-")}, is_from_zero=True),
        Panel(
            title="Time spent waiting for data (%)",
            lines={"speed/data_wait_fraction": ("", "val", "-")},
            scale=100.0,
            is_from_zero=True,
        ),
    ],
}


def series(rows: Iterable[Row], name: str) -> tuple[list[float], list[float]]:
    """The steps and values of one metric. A long series is averaged down to MOST_POINTS."""
    points = [(float(row["step"]), float(row[name])) for row in rows if name in row]
    points = [point for point in points if math.isfinite(point[1])]
    width = -(-len(points) // MOST_POINTS) or 1
    bins = [points[i : i + width] for i in range(0, len(points), width)]
    return [statistics.fmean(s for s, _ in b) for b in bins], [statistics.fmean(v for _, v in b) for b in bins]


def draw_charts(rows: Sequence[Row], steps_per_epoch: float | None) -> dict[str, tuple[bytes, str]]:
    """Name -> (PNG, SVG for the page), for each chart that has something to show."""
    charts = {}
    for name, panels in CHARTS.items():
        shown = [panel for panel in panels if any(series(rows, metric)[0] for metric in panel.lines)]
        if shown:
            charts[name] = _export(_draw(shown, rows, steps_per_epoch))
    return charts


def _draw(panels: Sequence[Panel], rows: Sequence[Row], steps_per_epoch: float | None) -> Figure:
    figure = Figure(figsize=(4.3, 2.9), facecolor=LIGHT["paper"])
    ratios = [2.2, 1.0][: len(panels)]
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
    figure.subplots_adjust(left=0.13, right=0.96, top=0.885, bottom=0.185 if steps_per_epoch else 0.12, hspace=0.42)
    for axis, panel in zip(axes, panels, strict=True):
        _draw_panel(axis, panel, rows)
    _label_steps(axes[-1], steps_per_epoch)
    return figure


def _draw_panel(axis: Axes, panel: Panel, rows: Sequence[Row]) -> None:
    for metric, (label, colour, style) in panel.lines.items():
        steps, values = series(rows, metric)
        marker = "o" if len(steps) == 1 or (colour != "train" and len(steps) <= 50 and style == "-" and label) else ""
        if steps:
            axis.plot(
                steps,
                [value * panel.scale for value in values],
                style,
                marker=marker,
                color=LIGHT[colour],
                label=label,
                linewidth=1.5,
                markersize=3,
                zorder=3,
                clip_on=False,
            )
    for step in restarts(rows):
        axis.axvline(step, color=LIGHT["muted"], linewidth=0.7, linestyle=(0, (2, 2)))
    axis.set_xlim(0, max(1, *(int(row["step"]) for row in rows)))
    dress(axis, panel.title, is_from_zero=panel.is_from_zero)
    if len([line for line in axis.get_lines() if not str(line.get_label()).startswith("_")]) > 1:
        axis.legend(
            loc="lower right",
            bbox_to_anchor=(1.028, 0.985),
            ncols=4,
            frameon=False,
            fontsize=9,
            labelcolor=LIGHT["ink"],
            handlelength=1.1,
            handletextpad=0.5,
            columnspacing=1.0,
        )


def dress(axis: Axes, title: str, *, is_from_zero: bool) -> None:
    """Give axes with lines in them their title, and the look that all charts have."""
    axis.margins(y=0.08)
    if is_from_zero:
        axis.set_ylim(0, max(axis.get_ylim()[1], 1e-9))
    axis.set_facecolor(LIGHT["paper"])
    axis.set_title(title, loc="left", x=-0.152, pad=7, fontsize=10, weight="bold", color=LIGHT["ink"])
    axis.grid(axis="y", color=LIGHT["rule"], linewidth=0.7)
    axis.tick_params(length=0, pad=5, labelsize=9, labelcolor=LIGHT["muted"])
    axis.spines[["top", "left", "right"]].set_visible(False)
    axis.spines["bottom"].set_color(LIGHT["muted"])
    axis.locator_params(axis="y", nbins=5 if axis.bbox.height > 100 else 3)


def _label_steps(axis: Axes, steps_per_epoch: float | None) -> None:
    """Two rows of numbers under the lowest axes: steps, and below them epochs."""
    names = ["step"]
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axis.xaxis.set_major_formatter("{x:,.0f}")
    if steps_per_epoch:
        to_epochs, to_steps = partial(np.multiply, 1 / steps_per_epoch), partial(np.multiply, steps_per_epoch)
        epochs = axis.secondary_xaxis(0, functions=(to_epochs, to_steps))
        epochs.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        epochs.tick_params(length=0, pad=19, labelsize=9, labelcolor=LIGHT["muted"])
        epochs.spines["bottom"].set_visible(False)
        names.append("epoch")
    name_numbers(axis, names)


def name_numbers(axis: Axes, names: Sequence[str]) -> None:
    """Say beside each row of numbers below the axes what they count."""
    for i, name in enumerate(names):
        axis.annotate(
            name,
            (0, 0),
            xycoords="axes fraction",
            xytext=(-8, -5 - 14 * i),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=9,
            color=LIGHT["muted"],
        )


def _export(figure: Figure) -> tuple[bytes, str]:
    """The figure as a PNG, and as SVG for the page."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=200, bbox_inches=figure.bbox_inches.padded(0.12))
    return png.getvalue(), to_svg(figure, LIGHT)


def to_svg(figure: Figure, colours: Mapping[str, str]) -> str:
    """The figure as SVG whose text is text and whose colours are the page's variables, of these names."""
    svg = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "report"}):
        figure.savefig(svg, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = svg.getvalue()
    text = text[text.index("<svg") :]
    for name, colour in colours.items():
        text = text.replace(colour, f"var(--{name})")
    return text
