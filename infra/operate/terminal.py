"""What the operator sees, printed by rich. A terminal gets colours and wrapped lines, a file gets plain lines.

NO_COLOR turns the colours off. `text` has amounts as text.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from infra.run.values import STEERING, printable

__all__ = [
    "Cell", "Group", "LiveLine", "RenderableType", "Text", "clear", "display", "display_commands", "display_json",
    "escaped", "next_commands", "plain", "styled", "table",
]  # fmt: skip
PLAIN_WIDTH = 100_000  # where no terminal says how wide it is, nothing is wrapped
Cell = str | Text


def console() -> Console:
    """A console for the present standard output."""
    is_terminal = sys.stdout.isatty()
    has_colors = is_terminal and not os.environ.get("NO_COLOR")
    return Console(
        file=sys.stdout, force_terminal=is_terminal, width=None if is_terminal else PLAIN_WIDTH,
        color_system="auto" if has_colors else None, highlight=False, markup=False, emoji=False,
    )  # fmt: skip


def display(*things: RenderableType) -> None:
    """Print each thing on lines of its own."""
    to = console()
    if to.is_terminal:
        to.print(*things, sep="\n")
    else:
        print(plain(*things), flush=True)


def display_json(value: object) -> None:
    """Print one JSON document on standard output."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    print(STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text), flush=True)


def plain(*things: RenderableType) -> str:
    """The text as it is printed to a file."""
    to = Console(width=PLAIN_WIDTH, color_system=None, highlight=False, markup=False, emoji=False)
    with to.capture() as captured:
        to.print(*things, sep="\n")
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def styled(text: str, style: str) -> Text:
    return Text(text, style)


def escaped(text: str, style: str) -> str:
    """The text with this terminal's escape codes, for a line that must not be wrapped."""
    to = console()
    with to.capture() as captured:
        to.print(Text(text, style), end="", soft_wrap=True)
    return captured.get()


def table(rows: Iterable[Sequence[Cell]], header: Sequence[str] = (), indent: int = 0) -> RenderableType:
    """A table with two spaces between its columns. Numbers stand on the right. The first column is not wrapped."""
    lines = [[Text(printable(cell)) if isinstance(cell, str) else cell for cell in row] for row in rows]
    grid = Table(box=None, show_header=bool(header), header_style="dim", padding=(0, 2, 0, 0), pad_edge=False)
    for i in range(len(header or (lines[0] if lines else ()))):
        is_numeric = bool(lines) and all(line[i].plain[:1] in "$-0123456789" for line in lines)
        grid.add_column(
            header[i] if header else "", justify="right" if is_numeric else "left", overflow="fold", no_wrap=i == 0
        )
    for line in lines:
        grid.add_row(*line)
    return Padding(grid, (0, 0, 0, indent), expand=False) if indent else grid


def display_commands(rows: Sequence[Sequence[str]]) -> None:
    """Print rows that end with a command. A command is never wrapped, so that it can be copied."""
    width, widest = console().width, max(sum(len(cell) + 2 for cell in row) for row in rows)
    if widest <= width:
        display(table(rows, indent=2))
        return
    for *what, command in rows:
        display(f"  {' '.join(what)}")
        print(f"    {command}")


def next_commands(*commands: tuple[str, str]) -> None:
    """Print what the user can type next, as (command, what it does)."""
    display("\nnext:", table(commands, indent=2))


def clear() -> None:
    """Clear the terminal. In a file, nothing happens."""
    console().clear()


class LiveLine:
    """One line that changes in place on a terminal. In a file, every new text is a line of its own."""

    def __init__(self) -> None:
        self.shown = ""
        self.live = Live(console=console(), auto_refresh=False, transient=True) if sys.stdout.isatty() else None

    def __enter__(self) -> LiveLine:
        return self

    def show(self, text: str) -> None:
        if text == self.shown:
            return
        self.shown = text
        if self.live is None:
            print(text, flush=True)
            return
        self.live.start()
        self.live.update(Text(text), refresh=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the line, also on Ctrl-C."""
        if self.live is not None:
            self.live.stop()
