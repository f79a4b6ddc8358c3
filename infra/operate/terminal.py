"""What the operator sees: tables and colours on a terminal, plain text otherwise (and where NO_COLOR is set)."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence

COLORS = {"red": 31, "green": 32, "yellow": 33, "dim": 2, "bold": 1}


def color(text: str, name: str) -> str:
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\033[{COLORS[name]}m{text}\033[0m"


def table(rows: Iterable[Sequence[object]], header: Sequence[str] = ()) -> str:
    """Columns as wide as they must be, numbers to the right, two spaces between."""
    lines = [[str(cell) for cell in row] for row in ([header] if header else []) + list(rows)]
    if not lines:
        return ""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    numeric = [all(line[i][:1] in "$-0123456789" for line in lines[bool(header) :]) for i in range(len(widths))]
    text = [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    ]
    if header:
        text[0] = color(text[0], "dim")
    return "\n".join(text)


def usd(amount: float) -> str:
    return f"${amount:,.2f}"


def duration(seconds: float) -> str:
    """1 h 05 min, 12 min, 40 s."""
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def next_commands(*commands: tuple[str, str]) -> None:
    """What to type next: (command, what it does)."""
    print("\nnext:")
    print(table([(f"  {command}", what) for command, what in commands]))


class Live:
    """One line that changes in place on a terminal; elsewhere every new text is a line of its own."""

    def __init__(self) -> None:
        self.shown = ""

    def show(self, text: str) -> None:
        if text == self.shown:
            return
        print(f"\r\033[K{text}" if sys.stdout.isatty() else text, end="" if sys.stdout.isatty() else "\n", flush=True)
        self.shown = text

    def end(self, text: str = "") -> None:
        """The last text, which stays."""
        if sys.stdout.isatty() and self.shown:
            print("\r\033[K", end="")
        if text:
            print(text, flush=True)
        self.shown = ""
