"""The part of the page about what was told while the run went on. Alerts lie in the store, so they may be anybody's."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.report.elements import show_moment
from trainer.telemetry.metrics import Row
from trainer.values import as_text

SHOWN_AT_FIRST = 5  # the others unfold
MOST_TOLD = 200  # the newest
MOST_LETTERS_OF_ONE = 400  # of one


@dataclass(frozen=True)
class ToldAlert:
    """One that is as the observer writes it."""

    time: float  # unix seconds
    step: int
    level: str  # info, warning or error
    text: str


def shown_alerts(rows: Sequence[Row]) -> list[ToldAlert]:
    """The newest first. What is odd is left out."""
    found = []
    for row in rows:
        try:
            level, text = as_text("level", row.get("level"), "info|warning|error"), as_text("text", row.get("text"))
        except ValueError:
            continue
        found.append(ToldAlert(row["time"], row["step"], level, text[:MOST_LETTERS_OF_ONE]))
    return sorted(found, key=lambda one: -one.time)[:MOST_TOLD]


def alert_section(rows: Sequence[Row]) -> str:
    """HTML; "" where nothing was told. What is wrong stands first; the rest of the list unfolds."""
    alerts = shown_alerts(rows)
    if not alerts:
        return ""
    first = [one for one in alerts if one.level != "info"][:SHOWN_AT_FIRST] or alerts[:SHOWN_AT_FIRST]
    more = ""
    if len(alerts) > len(first):
        more = f"<details><summary>All {len(alerts):,} alerts</summary>{_list(alerts)}</details>"
    return f"<section><h2>Alerts</h2>{_list(first)}{more}</section>"


def _list(alerts: Sequence[ToldAlert]) -> str:
    return f'<ul class="alerts">{"".join(_item(one) for one in alerts)}</ul>'


def _item(one: ToldAlert) -> str:
    when = f"{show_moment(one.time)}, step {one.step:,}"
    level = f"<b>{one.level}</b> " if one.level != "info" else ""
    return f'<li class="{one.level}"><span>{when}</span><p>{level}{html.escape(one.text)}</p></li>'
