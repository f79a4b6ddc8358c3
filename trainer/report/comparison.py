"""The page that compares runs, as one HTML file. It needs no network and no scripts, and has a light and a dark mode.

Everything that comes from runs is escaped here, where it becomes HTML.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from string import Template

from trainer.report.elements import wide_table
from trainer.report.page import DARK, LIGHT, as_variables, stylesheet

# The colours of lines, in their order, told apart in both modes; after the last one they begin again, with dashes.
RUNS_LIGHT = dict(zip(
    [f"run-{number}" for number in range(8)],
    ["#3d70b1", "#c2581d", "#27866b", "#8a50a4", "#96741d", "#b33a68", "#3f8496", "#5b6470"], strict=True,
))  # fmt: skip
RUNS_DARK = dict(zip(
    RUNS_LIGHT, ["#7fb0ea", "#f0925a", "#5cc5a4", "#c39be0", "#d6b45c", "#ee85aa", "#7cc4d6", "#a9b2bd"], strict=True
))  # fmt: skip
DASHES = {"-": "", "--": "6 3", ":": "2 2"}

_COMPARISON = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>:root{color-scheme:light dark;$light}
@media(prefers-color-scheme:dark){:root{$dark}}$css
.key{display:inline-block;width:1.6rem;height:.6rem;margin-right:.6rem;overflow:visible}
.mean td{font-weight:650}
ul{margin:1.25rem 0 0;padding-left:1.2rem;font-size:.92rem;overflow-wrap:anywhere}</style>
</head>
<body><main>
<header>
<p class="kind">Comparison of $count</p>
<h1>$title</h1>
</header>
<h2>Scores</h2>
$scores
$notes
<h2>Curves</h2>
$curves
<h2>Options</h2>
$options
<footer>$origin</footer>
</main></body>
</html>
""")


def line_of(number: int) -> tuple[str, str]:
    """The name of the colour, and the style, of the line of a run."""
    styles = list(DASHES)
    return f"run-{number % len(RUNS_LIGHT)}", styles[number // len(RUNS_LIGHT) % len(styles)]


def render_comparison(
    names: Sequence[str],
    scores: Sequence[Sequence[str]],
    notes: Sequence[str],
    options: Sequence[Sequence[str]],
    curves: Mapping[str, str],
    origin: str,
) -> str:
    """The whole page.

    `scores` has a head, a row for each name in their order, and perhaps one of means. `options` has a head, and a row
    for each option that is not the same in all runs. `curves` has our own SVG, by title.
    """
    figures = "".join(
        f'<figure role="img" aria-label="{html.escape(title)}">{svg}</figure>' for title, svg in curves.items()
    )
    said = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return _COMPARISON.substitute(
        title=html.escape(", ".join(names)),
        light=as_variables(LIGHT | RUNS_LIGHT),
        dark=as_variables(DARK | RUNS_DARK),
        css=stylesheet(),
        count=f"{len(names)} runs" if len(names) > 1 else "1 run",
        scores=_scores(scores, len(names)),
        notes=f"<ul>{said}</ul>" if said else "",
        curves=f'<div class="charts">{figures}</div>' if figures else '<p class="note">Nothing measured yet.</p>',
        options=wide_table("Options", options[0], [_cells(row) for row in options[1:]])
        if options[1:]
        else '<p class="note">All runs have the same.</p>',
        origin=html.escape(origin),
    )


def _scores(rows: Sequence[Sequence[str]], runs: int) -> str:
    body = [_cells(row, key=_key(number)) for number, row in enumerate(rows[1 : 1 + runs])]
    body += [_cells(row).replace("<tr>", '<tr class="mean">') for row in rows[1 + runs :]]
    return wide_table("Scores", rows[0], body)


def _key(number: int) -> str:
    """A piece of a run's line, to find it in the curves."""
    colour, style = line_of(number)
    dash = f' stroke-dasharray="{DASHES[style]}"' if DASHES[style] else ""
    path = f'<path d="M0 5h26" stroke="var(--{colour})" stroke-width="3"{dash}/>'
    return f'<svg class="key" viewBox="0 0 26 10">{path}</svg>'


def _cells(row: Sequence[str], key: str = "") -> str:
    first, *others = (html.escape(cell) for cell in row)
    return f"<tr><td>{key}{first}</td>{''.join(f'<td>{cell}</td>' for cell in others)}</tr>"
