"""JSON as somebody may forge it: honest documents with a value missing or of another kind, and bodies that are none."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

DEEP = b"[" * 100_000 + b"]" * 100_000
BODIES = (
    b"", b"null", b"[]", b"7", b'"text"', b"{", b"\xff\xfe\x00", b"{}", DEEP, b'{"a":' * 500 + b"1" + b"}" * 500,
    b"9" * 5000, b'{"step": NaN}', b'{"": 1}', b"NaN",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, "x", "\x1b[2J", "../..", -1, 0, 1.5, 10**18, 10**400, 1e300, float("nan"), float("inf"), [], [1], {},
    {"x": 1}, ["x"] * 3,
)  # fmt: skip


def paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something is in a document, of each list its first element only."""
    inner = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for name, one in inner:
        yield (*at, name)
        yield from paths(one, (*at, name))


def forgeries(honest: Any, write: Callable[[Any], bytes] = lambda value: json.dumps(value).encode()) -> list[bytes]:
    """Bodies: the hostile ones, and the honest one with each of its values missing or replaced."""
    found = list(BODIES)
    for *way, last in paths(honest):
        for value in (*VALUES, paths):  # the last stands for nothing
            forged = copy.deepcopy(honest)
            place = forged
            for name in way:
                place = place[name]
            if value is paths:
                del place[last]
            else:
                place[last] = value
            found.append(write(forged))
    return found
