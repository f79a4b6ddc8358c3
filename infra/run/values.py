"""Checks of values that were read from a store, where others may have written them. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable

MOST = 1e10  # of dollars, hours or Unix seconds: no honest file has more


def check_number(name: str, value: object, most: float = MOST) -> float:
    """The number. Raises ValueError unless it is one, finite, and from 0 to `most`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise ValueError(f"{name} is {value!r}, not a number from 0 to {most:g}"[:200])
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
