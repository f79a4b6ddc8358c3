"""Amounts as people read them: dollars, durations, sizes, times. All commands take them from here."""

from __future__ import annotations

from datetime import datetime


def usd(amount: float) -> str:
    return f"${amount:,.2f}"


def duration(seconds: float) -> str:
    """A duration as text: 1 h 05 min, 12 min, 40 s."""
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def size(count: float, decimals: int = 1) -> str:
    """A number of bytes as text: 1.5 GB, 20.0 MB."""
    return f"{count / 1e9:,.{decimals}f} GB" if count >= 1e8 else f"{count / 1e6:,.{decimals}f} MB"


def weekday_time(seconds: float) -> str:
    """A time of this week in this machine's time zone: Fri 14:05."""
    return f"{datetime.fromtimestamp(seconds).astimezone():%a %H:%M}"


def date_time(seconds: float) -> str:
    """A time of this year in this machine's time zone: 27 Nov 14:05."""
    return f"{datetime.fromtimestamp(seconds).astimezone():%d %b %H:%M}"
