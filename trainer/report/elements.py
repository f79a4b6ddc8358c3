"""Pieces of HTML that several parts of a page have. Text is escaped here; what is HTML already is said to be."""

from __future__ import annotations

import html
from collections.abc import Sequence
from datetime import UTC, datetime


def fact_list(told: Sequence[tuple[str, str]], kind: str = "") -> str:
    """Names and values, as text."""
    pairs = "".join(f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd></div>" for k, v in told)
    return f'<dl class="{kind}">{pairs}</dl>' if kind else f"<dl>{pairs}</dl>"


def wide_table(name: str, titles: Sequence[str], body: Sequence[str], kind: str = "") -> str:
    """A table that scrolls sideways where the window is narrow, also by keyboard. `body` is rows of HTML."""
    head = "".join(f'<th scope="col">{html.escape(title)}</th>' for title in titles)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    classes = f"wide {kind}".rstrip()
    return f'<div class="{classes}" role="region" tabindex="0" aria-label="{html.escape(name)}">{table}</div>'


def show_moment(seconds: float) -> str:
    """Unix seconds as a time in UTC."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
