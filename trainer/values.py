"""JSON that others may have written: read with limits, and checked value by value. What is wrong is a ValueError.

Standard library only. Nothing here does I/O.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

MOST_NESTED = 32  # of objects within objects; no file of a run has more than 6
MOST_WHOLE = 1 << 53  # of counts and bytes
MOST_TIME = 1e10  # of Unix time, in the year 2286
MOST_VALUE = 1e100  # of a loss or a speed: larger ones are no measurement
SHA256 = r"[0-9a-f]{64}"


def parse_json(body: bytes | str) -> Any:
    """The value. Raises ValueError if this is no JSON, or nested more deeply than any file of ours."""
    try:
        value = json.loads(body)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if _openings(body) < MOST_NESTED:  # nothing to look for: of rows of metrics there are many
        return value
    level = [value]
    for _ in range(MOST_NESTED):
        level = [inner for one in level if isinstance(one, dict | list) for inner in _inside(one)]
        if not level:
            return value
    raise ValueError("it is nested too deeply")


def _openings(body: bytes | str) -> int:
    return body.count("{") + body.count("[") if isinstance(body, str) else body.count(b"{") + body.count(b"[")


def _inside(value: dict[str, Any] | list[Any]) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value


def parse_object(body: bytes | str) -> dict[str, Any]:
    """The JSON object. Raises ValueError."""
    return as_object("the file", parse_json(body))


def as_object(name: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {show(value)}, not an object")
    return value


def as_list(name: str, value: object) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{name} is {show(value)}, not a list")
    return value


def as_whole(name: str, value: object, most: int = MOST_WHOLE) -> int:
    """The whole number, from 0 to `most`."""
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{name} is {show(value)}, not a whole number from 0 to {most:,}")
    return value


def as_number(name: str, value: object, most: float = MOST_VALUE) -> float:
    """The number, finite, and from `-most` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -most <= value <= most:
        raise ValueError(f"{name} is {show(value)}, not a number up to {most:g}")
    return value


def as_time(name: str, value: object) -> float:
    """Unix seconds."""
    if (seconds := as_number(name, value, MOST_TIME)) < 0:
        raise ValueError(f"{name} is {show(value)}, which is before 1970")
    return float(seconds)


def as_text(name: str, value: object, pattern: str = r"(?s:.*)") -> str:
    """The text. Raises ValueError unless it is one, and of the pattern."""
    if not isinstance(value, str) or not re.fullmatch(pattern, value):
        raise ValueError(f"{name} is {show(value)}, not {'a text' if pattern == r'(?s:.*)' else pattern}")
    return value


def check_known(value: Mapping[str, Any], name: str) -> Any:
    """The value of a name that must be there."""
    if name not in value:
        raise ValueError(f"{name} is missing")
    return value[name]


def is_measured(value: object) -> bool:
    """Whether this is a number that a trainer may measure. The loss of a validation may be NaN or infinite."""
    if type(value) is not float and type(value) is not int:
        return False
    return abs(value) <= MOST_VALUE or value != value or abs(value) == math.inf


def show(value: object) -> str:
    """A value as text for a message: short, and without characters that steer a terminal."""
    text = ascii(value) if isinstance(value, str | int | float | bool | None) else type(value).__name__
    return text if len(text) <= 80 else f"{text[:79]}…"
