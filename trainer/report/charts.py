"""Draws the curves of a run: as SVG for the page, and those of the training as PNG for files, too.

It uses matplotlib without pyplot, which has global state. `panels` says which chart shows which metric.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from trainer.report.curves import MetricCurve
from trainer.report.page import LIGHT, Chart
from trainer.report.panels import CHARTS, MACHINE_CHARTS, STEP_CHARTS, TRAINING_CHARTS, Lines, Panel
from trainer.report.plotted import Plotted, Ruler

MOST_MARKED = 50  # of an evaluation: so many are marked each


def draw_charts(plotted: Plotted, names: Sequence[str] = CHARTS) -> tuple[dict[str, Chart], dict[str, Chart]]:
    """Charts by name, those of `names` that have something to show: along the steps, and along the machine's time."""
    with mpl.rc_context({"path.simplify": False}):  # curves are short already, and every point of theirs is shown
        return (
            _draw_all(TRAINING_CHARTS | STEP_CHARTS, names, plotted.of_steps, plotted.steps),
            _draw_all(MACHINE_CHARTS, names, plotted.of_machine, plotted.times),
        )


def _draw_all(
    charts: Mapping[str, Sequence[Panel]], names: Sequence[str], curves: Mapping[str, MetricCurve], ruler: Ruler
) -> dict[str, Chart]:
    drawn = {}
    for name, panels in charts.items():
        shown = [panel for panel in panels if not curves.keys().isdisjoint(panel.lines)]
        if shown and name in names:
            figure = _draw(shown, curves, ruler)
            png = _to_png(figure) if name in TRAINING_CHARTS else b""
            drawn[name] = Chart(svg=to_svg(figure, LIGHT), png=png, words=_words(shown, curves, ruler))
    return drawn


def _draw(panels: Sequence[Panel], curves: Mapping[str, MetricCurve], ruler: Ruler) -> Figure:
    figure = Figure(figsize=(4.3, 2.9), facecolor=LIGHT["paper"])
    ratios = [1.7, 1.0][: len(panels)]
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
    bottom = 0.185 if ruler.steps_per_epoch else 0.12
    figure.subplots_adjust(left=0.13, right=0.96, top=0.885, bottom=bottom, hspace=0.42)
    for axis, panel in zip(axes, panels, strict=True):
        _draw_panel(axis, panel, curves, ruler)
    _label_steps(axes[-1], ruler)
    return figure


def _draw_panel(axis: Axes, panel: Panel, curves: Mapping[str, MetricCurve], ruler: Ruler) -> None:
    plotted = _plot(axis, panel.lines, curves, ruler.size, panel.scale)
    for mark in ruler.marks:
        axis.axvline(mark / ruler.size, color=LIGHT["muted"], linewidth=0.7, linestyle=(0, (2, 2)))
    axis.set_xlim(0, _end(panel.lines, curves, ruler) / ruler.size)
    dress(axis, panel.title, is_from_zero=panel.is_from_zero)
    if not curves.keys().isdisjoint(panel.right):
        right = axis.twinx()
        plotted += _plot(right, panel.right, curves, ruler.size, 1.0)
        _dress_right(axis, right)
    named = [line for line in plotted if not str(line.get_label()).startswith("_")]
    if len(named) > 1:
        axis.legend(
            handles=named,
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


def _plot(axis: Axes, lines: Lines, curves: Mapping[str, MetricCurve], size: float, scale: float) -> list[Line2D]:
    """Lines of the means; behind each a band from the lowest to the highest value, where points stand for several."""
    plotted = []
    for metric, (label, colour, style) in lines.items():
        if (curve := curves.get(metric)) is None:
            continue
        steps = curve.at / size
        is_evaluation = metric.startswith("val") and style == "-" and len(steps) <= MOST_MARKED
        plotted += axis.plot(
            steps,
            curve.mean * scale,
            style,
            marker="o" if len(steps) == 1 or is_evaluation else "",
            color=LIGHT[colour],
            label=label,
            linewidth=1.5 if colour != "muted" else 1.1,
            markersize=3,
            zorder=3,
            clip_on=False,
            gid=metric,
        )
        if curve.is_thinned and style == "-":
            low, high = curve.low * scale, curve.high * scale
            axis.fill_between(steps, low, high, color=LIGHT[colour], alpha=0.22, linewidth=0, gid=f"{metric}/range")
    return plotted


def _end(lines: Iterable[str], curves: Mapping[str, MetricCurve], ruler: Ruler) -> float:
    """A plan reaches beyond what is done."""
    return max([ruler.end, *(float(curves[name].at[-1]) for name in lines if name in curves)])


def _dress_right(axis: Axes, right: Axes) -> None:
    """The second scale of a panel, on its right side: the main one keeps the front."""
    low, high = right.get_ylim()
    right.set_ylim(low - 0.06 * (high - low), high + 0.02 * (high - low))
    right.set_facecolor("none")
    right.spines[:].set_visible(False)
    right.tick_params(length=0, pad=3, labelsize=9, labelcolor=LIGHT["ema"])
    right.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axis.figure.subplots_adjust(right=0.9)
    axis.set_zorder(right.get_zorder() + 1)
    axis.patch.set_visible(False)


def _words(panels: Sequence[Panel], curves: Mapping[str, MetricCurve], ruler: Ruler) -> str:
    """The chart in numbers."""
    told = []
    for panel in panels:
        numbers = [
            f"{label or 'measured'} {_number(curve.last * scale)} at the end, "
            f"lowest {_number(curve.lowest.value * scale)} at {ruler.place(curve.lowest.at)}, "
            f"highest {_number(curve.highest.value * scale)} at {ruler.place(curve.highest.at)}"
            for lines, scale in ((panel.lines, panel.scale), (panel.right, 1.0))
            for metric, (label, _, _) in lines.items()
            if (curve := curves.get(metric)) is not None and (label or len(lines) == 1)
        ]
        told.append(f"{panel.title}: {'; '.join(numbers)}.")
    return " ".join(told)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def dress(axis: Axes, title: str, *, is_from_zero: bool) -> None:
    """Give axes with lines in them their title, and the look that all charts have."""
    axis.margins(y=0.08)
    if is_from_zero:
        axis.set_ylim(0, max(axis.get_ylim()[1], 1e-9))
    axis.set_facecolor(LIGHT["paper"])
    axis.set_title(title, loc="left", x=-0.152, y=1.0, pad=7, fontsize=10, weight="bold", color=LIGHT["ink"])
    axis.grid(axis="y", color=LIGHT["rule"], linewidth=0.7)
    axis.tick_params(length=0, pad=5, labelsize=9, labelcolor=LIGHT["muted"])
    axis.spines[["top", "left", "right"]].set_visible(False)
    axis.spines["bottom"].set_color(LIGHT["muted"])
    axis.locator_params(axis="y", nbins=5 if axis.bbox.height > 100 else 3)
    if axis.get_ylim()[1] >= 1000:
        axis.yaxis.set_major_formatter("{x:,.0f}")


def _label_steps(axis: Axes, ruler: Ruler) -> None:
    """Numbers under the lowest axes: of steps, and in a row below them of epochs; or of time."""
    names = [ruler.unit]
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axis.xaxis.set_major_formatter("{x:,.0f}")
    if ruler.steps_per_epoch:
        _label_epochs(axis, ruler.steps_per_epoch)
        names.append("epoch")
    name_numbers(axis, names)


def _label_epochs(axis: Axes, steps_per_epoch: float) -> None:
    end = axis.get_xlim()[1] / steps_per_epoch
    for epoch in MaxNLocator(8, integer=True).tick_values(0, end):
        if 0 <= epoch <= end:
            axis.annotate(
                f"{epoch:,.0f}",
                (epoch * steps_per_epoch, 0),
                xycoords=("data", "axes fraction"),
                xytext=(0, -19),
                textcoords="offset points",
                ha="center",
                va="top",
                fontsize=9,
                color=LIGHT["muted"],
            )


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


def _to_png(figure: Figure) -> bytes:
    png = io.BytesIO()
    around, quick = figure.bbox_inches.padded(0.12), {"compress_level": 2}
    figure.savefig(png, format="png", dpi=200, bbox_inches=around, pil_kwargs=quick)
    return png.getvalue()


def to_svg(figure: Figure, colours: Mapping[str, str]) -> str:
    """The figure as SVG whose text is text and whose colours are the page's variables, of these names.

    Coordinates are tenths of a point, which is less than a pixel. Only our own names and clip paths are ids.
    """
    svg = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "report"}):
        figure.savefig(svg, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = svg.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'<!--.*?-->\s*|(?<=<g) id="[A-Za-z.\d]+_\d+"', "", text, flags=re.DOTALL)
    text = re.sub(r' d="[^"]+"', lambda path: re.sub(r"(?<=\.\d)\d+", "", path[0]), text)
    for name, colour in colours.items():
        text = text.replace(colour, f"var(--{name})")
    return text
