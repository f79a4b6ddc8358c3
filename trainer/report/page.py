"""The report as one HTML file. It needs no network and no scripts, and has a light and a dark mode.

Everything that comes from the run is escaped here, where it becomes HTML.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from string import Template
from typing import Any

from trainer.report.alert_table import alert_section
from trainer.report.elements import fact_list, show_moment, wide_table
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
from trainer.text import show_estimate, show_number

# A chart uses only these colours: the page replaces them by CSS variables, which follow dark mode.
LIGHT = {"paper": "#fcfbf9", "ink": "#1c2530", "muted": "#66707c", "rule": "#e3e1dc"}
LIGHT |= {"train": "#3d6fb0", "val": "#c2571c", "ema": "#27856a", "swa": "#8a4fa3", "bad": "#b3322f"}
DARK = {"paper": "#14181d", "ink": "#e6e8ea", "muted": "#98a2ad", "rule": "#2d343c"}
DARK |= {"train": "#7fb0ea", "val": "#f0925a", "ema": "#5cc5a4", "swa": "#c39be0", "bad": "#ff8a80"}

EVALUATIONS_SHOWN = 12  # at first; the others unfold
MOST_EVALUATIONS = 400  # the page stays below 2 MB


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A drawn chart. `words` say what it shows, for those who do not see it. `png` is b"" where there is no file."""

    svg: str
    png: bytes
    words: str


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What the page shows of a run, beside its summary and rows. All of it may be empty."""

    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    training: Mapping[str, Chart] = field(default_factory=dict)
    machine: Mapping[str, Chart] = field(default_factory=dict)
    machine_facts: Sequence[tuple[str, str]] = ()
    alerts: Sequence[Row] = ()
    scored: Sequence[Scored] = ()


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
<div class="result">$top1$facts</div>
</header>
$alerts
<section><h2>Curves</h2>
$training</section>
$machine
<section><h2>Evaluations</h2>
$evaluations</section>
$scored
$config
$versions
<footer>Checkpoint $checkpoint<br>Metrics $metrics</footer>
</main></body>
</html>
""")


def render_page(summary: Summary, rows: Sequence[Row], shown: Shown) -> str:
    """The whole page."""
    best = summary.best
    title = f"{summary.run_id} · {percent(best.top1)} top-1" if best else summary.run_id
    return _PAGE.substitute(
        title=html.escape(title),
        light=as_variables(LIGHT),
        dark=as_variables(DARK),
        css=stylesheet(),
        recipe=html.escape(summary.recipe),
        run_id=html.escape(summary.run_id),
        state=_state(summary),
        top1=_top1(best),
        facts=fact_list(_facts(summary)),
        alerts=alert_section(shown.alerts),
        training=_charts(shown.training, _attempts(rows)),
        machine=_machine_section(shown),
        evaluations=_evaluations(summary, rows),
        scored=scored_section(shown.scored),
        config=_named_values("Configuration", config_rows(shown.config)),
        versions=_named_values("Versions", list(shown.versions.items())),
        checkpoint=html.escape(summary.checkpoint or "none yet"),
        metrics=html.escape(summary.metrics),
    )


def stylesheet() -> str:
    return Path(__file__).with_name("page.css").read_text()


def as_variables(colours: Mapping[str, str]) -> str:
    return "".join(f"--{name}:{colour};" for name, colour in colours.items())


def _state(summary: Summary) -> str:
    """Whether the run is finished; if not, how far it is, what is left, and since when nobody knows more."""
    if summary.is_finished:
        return f'<p class="state">{finished_text(summary)}</p>'
    state, told, ahead = '<p class="state open">not finished</p>', list[str](), summary.outlook
    if not summary.total_steps:
        return state
    share = min(1.0, summary.steps / summary.total_steps)
    percents = min(100, 100 * summary.steps // summary.total_steps)  # 100 once all is done
    told.append(f"<b>{percents} %</b> done")
    if ahead.seconds_left is not None and ahead.end is not None:
        told.append(f"about {show_estimate(ahead.seconds_left)} left")
        told.append(f"ends about {show_moment(ahead.end)} if nothing interrupts it")
    if ahead.as_of:
        told.append(f"as of {show_moment(ahead.as_of)}")
    bar = f'<progress value="{share:.4f}" aria-label="{percents} percent of the steps are done"></progress>'
    return f'{state}<div class="way">{bar}<p>{" · ".join(told)}</p></div>'


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


def _charts(charts: Mapping[str, Chart], note: str) -> str:
    if not charts:
        return '<p class="note">Nothing measured yet.</p>'
    figures = "".join(
        f'<figure role="img" aria-label="{html.escape(chart.words)}">{chart.svg}</figure>' for chart in charts.values()
    )
    return f'<div class="charts">{figures}</div>{f"""<p class="note">{note}</p>""" if note else ""}'


def _attempts(rows: Sequence[Row]) -> str:
    steps = ", ".join(f"{step:,}" for step in restarts(rows))
    return f"Dashed vertical lines: a new attempt went on from step {steps}." if steps else ""


def _machine_section(shown: Shown) -> str:
    if not shown.machine and not shown.machine_facts:
        return ""
    facts_shown = fact_list(shown.machine_facts, "row") if shown.machine_facts else ""
    charts = _charts(shown.machine, "Along the time on a machine: pauses are left out.") if shown.machine else ""
    return f"<section><h2>Machine</h2>{facts_shown}{charts}</section>"


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
    for row in measured[::-1]:
        step = int(row["step"])
        cells = [show_number(step / summary.steps_per_epoch) if summary.steps_per_epoch else "–", f"{step:,}"]
        html_cells = [f"<td>{cell}</td>" for cell in cells]
        for name in shown:
            value = float(row[name]) if name in row else None
            text = "–" if value is None else f"{value:.4f}" if name.endswith("loss") else percent(value)
            html_cells.append(f'<td class="best">{text}</td>' if (step, name) == best_cell else f"<td>{text}</td>")
        body.append(f"<tr>{''.join(html_cells)}</tr>")
    head = ("epoch", "step", *shown.values())
    others, kept = len(body) - EVALUATIONS_SHOWN, body[:MOST_EVALUATIONS]
    table = wide_table("Evaluations", head, kept[:EVALUATIONS_SHOWN])
    if others <= 0:
        return table
    cut = f", of which these are the newest {len(kept):,}" if len(body) > len(kept) else ""
    folded = wide_table("Earlier evaluations", head, kept[EVALUATIONS_SHOWN:])
    return f"{table}<details><summary>{others:,} earlier ones{cut}</summary>{folded}</details>"


def _named_values(title: str, pairs: Sequence[tuple[str, str]]) -> str:
    if not pairs:
        return ""
    body = "".join(f'<tr><th scope="row">{html.escape(k)}</th><td>{html.escape(v)}</td></tr>' for k, v in pairs)
    return f'<details><summary>{title}</summary><table class="config">{body}</table></details>'


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
