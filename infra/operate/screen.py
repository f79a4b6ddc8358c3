"""One screen of a run for `status --watch`: what is wrong first, and as much of the rest as there is room for."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from infra.operate.facts import StatusRow, status_rows
from infra.operate.state import RunState
from infra.operate.terminal import Cell, Text, fitted, room, styled

LABEL_LETTERS = 15  # of the first column
CELL_LETTERS = 45  # of a row, beside its curve
MOST_CURVE = 60  # letters
LEAST_LINES = 4  # of rows: a smaller terminal shows no command
ROW_LINES = 2  # of the screen, at most, for each row


def curve_width(columns: int | None) -> int:
    """How wide the curves are. 0 where there is no terminal, or a narrow one."""
    return max(0, min(columns - LABEL_LETTERS - CELL_LETTERS, MOST_CURVE)) if columns else 0


def title(state: RunState) -> Text:
    kind = state.spec.kind if state.spec else "train"
    recipe = f", recipe {state.spec.recipe}" if state.spec and state.spec.recipe else ""
    return Text.assemble((f"run {state.run_id}", "bold"), f" ({kind}{recipe})")


def page_command(bucket: str, run_id: str) -> str:
    """What shows the run on a page that updates itself."""
    return f"make watch STORE=s3://{bucket} RUN={run_id}"


def screen(state: RunState, bucket: str, trouble: str = "") -> list[Text]:
    """The lines, as many as the terminal takes. `trouble` says why the state is not of now."""
    columns, lines = room() or (None, 0)
    at = f", {datetime.fromtimestamp(state.now).astimezone():%H:%M:%S}"
    head, command = title(state).append(at), page_command(bucket, state.run_id)
    rows: list[StatusRow] = [("wrong", styled(trouble, "red"))] if trouble else []
    rows += status_rows(state, curve_width(columns))
    if columns is None:
        lines_of_rows = (line for label, cell in rows for line in row_lines(label, cell, None))
        return [head, *lines_of_rows, Text(f"  next: {command}")]
    next_lines = [Text(f"next: {command}")]  # never cut, so that it can be copied
    left = lines - 2 - -(-len(next_lines[0]) // columns)  # one for the title, one for the cursor
    if left < LEAST_LINES:
        next_lines, left = [], max(lines - 2, 1)
    body = [line for label, cell in rows for line in row_lines(label, cell, columns)]
    if len(body) > left:
        body = [*body[: left - 1], *fitted(Text(f"  … more: make status RUN={state.run_id}", "dim"), columns, 1)]
    return [*fitted(head, columns, 1), *body, *next_lines]


def row_lines(label: str, cell: Cell, columns: int | None) -> Sequence[Text]:
    """The lines of a row, the label before the first."""
    text = cell if isinstance(cell, Text) else styled(cell, "")
    parts = [text] if columns is None else fitted(text, max(columns - LABEL_LETTERS - 2, 10), ROW_LINES)
    labels = [label, *[""] * (len(parts) - 1)]
    return [Text(f"  {name:<{LABEL_LETTERS}}").append_text(part) for name, part in zip(labels, parts, strict=True)]
