"""What the operator sees, printed by rich. A terminal gets colours and wrapped lines, a file gets plain lines.

Names, messages and reasons may come from the bucket, a log or AWS. So nothing else in `infra.operate` prints or asks,
and all text goes through one filter here: what steers a terminal is escaped, and what is too long is cut.
NO_COLOR turns the colours off. `text` has amounts as text.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TextIO

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from infra.operate.sparkline import BARS, PLAIN_BARS
from infra.run.values import STEERING, printable, printable_lines

__all__ = [
    "Cell", "Group", "LiveLine", "RenderableType", "Text", "ask", "bars", "display", "display_commands", "display_json",
    "display_line", "fitted", "next_commands", "plain", "plain_table", "room", "show_line", "show_screen",
    "show_traceback", "styled", "table",
]  # fmt: skip
PLAIN_WIDTH = 100_000  # where no terminal says how wide it is, nothing is wrapped
Cell = str | Text


class Filter(Console):
    """A console that escapes what would steer the terminal, whichever way a text came to it."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or not STEERING.search(segment.text):
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)


def console() -> Console:
    """A console for the present standard output."""
    is_terminal = sys.stdout.isatty()
    has_colors = is_terminal and not os.environ.get("NO_COLOR")
    return Filter(
        file=sys.stdout, force_terminal=is_terminal, width=None if is_terminal else PLAIN_WIDTH,
        color_system="auto" if has_colors else None, highlight=False, markup=False, emoji=False,
    )  # fmt: skip


def display(*things: RenderableType) -> None:
    """Print each thing on lines of its own."""
    to = console()
    things = tuple(printable_lines(one) if isinstance(one, str) else one for one in things)
    if to.is_terminal:
        to.print(*things, sep="\n")
    else:
        print(plain(*things), flush=True)


def show_line(text: object, file: TextIO | None = None) -> None:
    """Print the text as it is, unwrapped, on standard output or another file."""
    print(printable_lines(str(text)), file=file or sys.stdout, flush=True)


def show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print what an unexpected error says, for sys.excepthook."""
    lines = "".join(traceback.format_exception(kind, error, trace)).splitlines()
    for line in lines:
        show_line(line, sys.stderr)


def display_line(prefix: str, text: str, most: int) -> None:
    """Print a line of a log, with the prefix in a lighter colour and at most so many letters of the text."""
    to = console()
    with to.capture() as captured:
        to.print(Text(printable(prefix), "dim"), end="", soft_wrap=True)
    print(captured.get() + printable(text, most))


def ask(question: str) -> str:
    """What the user types after the question, without the spaces around it."""
    return input(printable(question)).strip()


def display_json(value: object) -> None:
    """Print one JSON document on standard output."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    print(STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text), flush=True)


def plain(*things: RenderableType) -> str:
    """The text as it is printed to a file."""
    to = Filter(width=PLAIN_WIDTH, color_system=None, highlight=False, markup=False, emoji=False)
    with to.capture() as captured:
        to.print(*things, sep="\n")
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def styled(text: str, style: str) -> Text:
    return Text(printable(text), style)


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


def plain_table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    """As `table`, as plain lines that are not wrapped: for many rows, of which rich needs a millisecond each."""
    lines = [[printable(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    is_numeric = [all(row[i][:1] in "$-0123456789" for row in lines[1:]) for i in range(len(header))]
    shapes = [f"{{:{'>' if right else '<'}{width}}}" for right, width in zip(is_numeric, widths, strict=True)]
    return "\n".join("  ".join(shapes).format(*line).rstrip() for line in lines)


def display_commands(rows: Sequence[Sequence[str]]) -> None:
    """Print rows that end with a command. A command is never wrapped, so that it can be copied."""
    width, widest = console().width, max(sum(len(cell) + 2 for cell in row) for row in rows)
    if widest <= width:
        display(table(rows, indent=2))
        return
    for *what, command in rows:
        display(f"  {' '.join(what)}")
        show_line(f"    {command}")


def next_commands(*commands: tuple[str, str]) -> None:
    """Print what the user can type next, as (command, what it does)."""
    display("\nnext:", table(commands, indent=2))


def room() -> tuple[int, int] | None:
    """Columns and lines of the terminal. None in a file, where nothing is wrapped or cut."""
    to = console()
    return (to.size.width, to.size.height) if to.is_terminal else None


def bars() -> str:
    """The letters of which a curve is drawn, the lowest first: what the terminal can show."""
    return BARS if (sys.stdout.encoding or "utf").lower().startswith("utf") else PLAIN_BARS


def fitted(text: Text, width: int, lines: int) -> list[Text]:
    """The text on at most so many lines of this width. What is too long ends with an ellipsis."""
    wrapped = list(text.wrap(console(), width))
    if len(wrapped) > lines:
        last = Text().join(wrapped[lines - 1 :])
        last.truncate(width, overflow="ellipsis")
        wrapped[lines - 1 :] = [last]
    return wrapped


def show_screen(lines: Sequence[Text]) -> None:
    """Show the lines in place of what is on the terminal, at once. In a file, they come after those before."""
    to = console()
    if not to.is_terminal:
        print(plain(*lines, Text()), flush=True)
        return
    with to:  # writes at its end
        to.clear()
        for line in lines:
            to.print(line, soft_wrap=True)


class LiveLine:
    """One line that changes in place on a terminal. In a file, every new text is a line of its own."""

    def __init__(self) -> None:
        self.shown = ""
        self.live = Live(console=console(), auto_refresh=False, transient=True) if sys.stdout.isatty() else None

    def __enter__(self) -> LiveLine:
        return self

    def show(self, text: str) -> None:
        text = printable(text)
        if text == self.shown:
            return
        self.shown = text
        if self.live is None:
            show_line(text)
            return
        self.live.start()
        self.live.update(Text(text), refresh=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the line, also on Ctrl-C."""
        if self.live is not None:
            self.live.stop()
