"""The report as one HTML file. It needs no network and no scripts, and has a light and a dark mode.

Everything that comes from the run is escaped here, where it becomes HTML.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from string import Template
from typing import Any

from trainer.report.scored import Scored, scored_section
from trainer.report.summary import (
    PREFIXES,
    WEIGHTS,
    Score,
    Summary,
    evaluations,
    facts,
    finished_text,
    last_scores,
    percent,
    restarts,
)
from trainer.telemetry.metrics import Row
from trainer.text import show_number

# A chart uses only these colours: the page replaces them by CSS variables, which follow dark mode.
LIGHT = {"paper": "#fcfbf9", "ink": "#1c2530", "muted": "#66707c", "rule": "#e3e1dc"}
LIGHT |= {"train": "#3d6fb0", "val": "#c2571c", "ema": "#27856a", "swa": "#8a4fa3"}
DARK = {"paper": "#14181d", "ink": "#e6e8ea", "muted": "#98a2ad", "rule": "#2d343c"}
DARK |= {"train": "#7fb0ea", "val": "#f0925a", "ema": "#5cc5a4", "swa": "#c39be0"}

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>:root{color-scheme:light dark;$light}
@media(prefers-color-scheme:dark){:root{$dark}}$css</style>
</head>
<body><main>
<header>
<p class="kind">Recipe $recipe</p>
<h1>$run_id</h1>
$state
<div class="result">$top1<dl>$facts</dl></div>
</header>
<h2>Curves</h2>
$charts
<h2>Evaluations</h2>
$evaluations
$scored
$config
<footer>Checkpoint $checkpoint<br>Metrics $metrics</footer>
</main></body>
</html>
""")


def render_page(
    summary: Summary, rows: Sequence[Row], config: Mapping[str, Any], charts: Mapping[str, str],
    scored: Sequence[Scored] = (),
) -> str:  # fmt: skip
    """The whole page. `charts` has our own SVG, by name."""
    best = summary.best
    title = f"{summary.run_id} · {percent(best.top1)} top-1" if best else summary.run_id
    return _PAGE.substitute(
        title=html.escape(title),
        light=as_variables(LIGHT),
        dark=as_variables(DARK),
        css=stylesheet(),
        recipe=html.escape(summary.recipe),
        run_id=html.escape(summary.run_id),
        state=f'<p class="state">{finished_text(summary)}</p>'
        if summary.is_finished
        else '<p class="state open">not finished</p>',
        top1=_top1(best),
        facts="".join(f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd></div>" for k, v in _facts(summary)),
        charts=_charts(charts, rows),
        evaluations=_evaluations(summary, rows),
        scored=scored_section(scored),
        config=_config(config),
        checkpoint=html.escape(summary.checkpoint or "none yet"),
        metrics=html.escape(summary.metrics),
    )


def stylesheet() -> str:
    return Path(__file__).with_name("page.css").read_text()


def as_variables(colours: Mapping[str, str]) -> str:
    return "".join(f"--{name}:{colour};" for name, colour in colours.items())


def _top1(best: Score | None) -> str:
    if best is None:
        return '<div class="top1"><b>–</b><span>no evaluation yet</span></div>'
    number = percent(best.top1).removesuffix(" %")
    return (
        f'<div class="top1"><b>{number}<small>%</small></b>'
        f"<span>top-1 on validation, best: step {best.step:,}, {WEIGHTS[best.weights]}</span></div>"
    )


def _facts(summary: Summary) -> list[tuple[str, str]]:
    told = []
    if summary.best and summary.best.top5 is not None:
        told.append(("top-5, best", percent(summary.best.top5)))
    told += [(f"top-1, {name}", percent(score.top1)) for name, score in last_scores(summary)]
    told += list(facts(summary).items())
    if summary.parameters:
        told.append(("parameters", f"{summary.parameters / 1e6:.1f} M"))
    if summary.started:
        told.append(("started, UTC", f"{datetime.fromtimestamp(summary.started, UTC):%Y-%m-%d %H:%M}"))
    return told


def _charts(charts: Mapping[str, str], rows: Sequence[Row]) -> str:
    if not charts:
        return '<p class="note">Nothing measured yet.</p>'
    figures = "".join(f'<figure role="img" aria-label="{name}">{svg}</figure>' for name, svg in charts.items())
    steps = ", ".join(f"{step:,}" for step in restarts(rows))
    note = f'<p class="note">Dashed vertical lines: a new attempt went on from step {steps}.</p>' if steps else ""
    return f'<div class="charts">{figures}</div>{note}'


def _evaluations(summary: Summary, rows: Sequence[Row]) -> str:
    measured = evaluations(rows)
    columns = {
        f"{prefix}/{name}": f"{title}{label}"
        for prefix, title in (("val", ""), ("val_ema", "EMA "), ("val_swa", "SWA "))
        for name, label in (("loss", "loss"), ("top1", "top-1"), ("top5", "top-5"))
    }
    shown = {name: label for name, label in columns.items() if any(name in row for row in measured)}
    if not shown:
        return '<p class="note">None yet.</p>'
    best = summary.best
    best_cell = (best.step, f"{PREFIXES[best.weights]}/top1") if best else None
    body = []
    for row in measured:
        step = int(row["step"])
        cells = [show_number(step / summary.steps_per_epoch) if summary.steps_per_epoch else "–", f"{step:,}"]
        html_cells = [f"<td>{cell}</td>" for cell in cells]
        for name in shown:
            value = float(row[name]) if name in row else None
            text = "–" if value is None else f"{value:.4f}" if name.endswith("loss") else percent(value)
            html_cells.append(f'<td class="best">{text}</td>' if (step, name) == best_cell else f"<td>{text}</td>")
        body.append(f"<tr>{''.join(html_cells)}</tr>")
    head = "".join(f"<th>{label}</th>" for label in ("epoch", "step", *shown.values()))
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _config(config: Mapping[str, Any]) -> str:
    if not config:
        return ""
    body = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in config_rows(config))
    return f'<details><summary>Configuration</summary><table class="config">{body}</table></details>'


def config_rows(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A config tree as dotted names and JSON values, in its own order."""
    pairs: list[tuple[str, str]] = []
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            pairs += config_rows(value, f"{prefix}{name}.")
        else:
            pairs.append(
                (f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
            )
    return pairs
