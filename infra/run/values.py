"""Values that were read from a store, where others may have written them: checked, and made fit to be printed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

MOST = 1e10  # of dollars, hours or Unix seconds: no honest file has more
MOST_BYTES = 1 << 20  # of an object that is read whole: no honest JSON of a run has more
MOST_LETTERS = 4_000  # of a text that is shown
MOST_LINES = 1_000  # likewise
# What steers a terminal, turns the direction of text, is invisible, or is not in UTF-8: all but tab and line feed.
STEERING = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060\u2066-\u2069\ud800-\udfff\ufeff]"
)


def printable(text: str, most: int = MOST_LETTERS) -> str:
    r"""The text as any terminal can take it: what steers one is escaped, as in \x1b, and what is too long is cut."""
    shown = STEERING.sub(lambda found: ascii(found[0])[1:-1], text[: most + 1])
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"


def printable_lines(text: str) -> str:
    """The text, each line of it `printable`. Of too many lines, those in the middle are left out."""
    lines = text.split("\n")
    if len(lines) > MOST_LINES:
        lines[MOST_LINES // 2 : -MOST_LINES // 2] = ["…"]
    return "\n".join(map(printable, lines))


def check_number(name: str, value: object, most: float = MOST) -> float:
    """The number. Raises ValueError unless it is one, finite, and from 0 to `most`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise ValueError(f"{name} is {value!r}, not a number from 0 to {most:g}"[:200])
    return value


def check_whole(name: str, value: object, most: int = int(MOST)) -> int:
    """The whole number. Raises ValueError unless it is one, from 0 to `most`."""
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{name} is {value!r}, not a whole number from 0 to {most:,}"[:200])
    return value


def check_object(name: str, value: object) -> dict[str, Any]:
    """The JSON object. Raises ValueError unless it is one."""
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {value!r}, not an object"[:200])
    return value


def check_text(name: str, value: object, choices: Iterable[str] = ()) -> str:
    """The text. Raises ValueError unless it is one, and one of the choices if there are any."""
    choices = tuple(choices)
    if not isinstance(value, str) or (choices and value not in choices):
        raise ValueError(f"{name} is {value!r}, not {' or '.join(choices) or 'a text'}"[:200])
    return value


def check_texts(name: str, value: object) -> tuple[str, ...]:
    """The texts of a list. Raises ValueError unless it is one."""
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name} is {value!r}, not a list"[:200])
    return tuple(check_text(name, one) for one in value)
