"""How the trainer speaks to people: one line on standard error, and bytes and durations as text.

Standard library only. What the operator's commands print is made in `infra.operate.terminal`.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from pathlib import Path
from typing import Any

_STEERING = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


class _Forgiving(io.FileIO):
    """Standard output or error that may be full, or lose its reader, which is no reason to stop."""

    def write(self, data: Any) -> int:
        with contextlib.suppress(OSError):
            return super().write(data)
        return len(data)


def forgive_output() -> None:
    """Let nothing that is printed end this process: a closed or full output, or a letter that its encoding lacks.

    For commands whose work does not lie in what they print. To be called before anything is opened: a closed stream
    becomes /dev/null, else the next file would take its number, and children would write into it.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest free number: this one
        if descriptor:
            before = getattr(sys, name)
            binary = io.BufferedWriter(_Forgiving(descriptor, "w", closefd=False))
            encoding = before.encoding if before is not None else "utf-8"
            lines = before is None or before.line_buffering
            setattr(sys, name, io.TextIOWrapper(binary, encoding, errors="replace", line_buffering=lines))


def say(line: str) -> None:
    """A line on standard error, written at once: a signal handler may speak between two lines of the program."""
    with contextlib.suppress(OSError):  # the terminal was closed, which is no reason to stop
        os.write(2, f"{line}\n".encode(errors="backslashreplace"))


def show_name(name: str | Path) -> str:
    r"""A name as text that any terminal and any format can take. A path may have bytes that are no UTF-8: caf\xe9.JPEG.

    Characters that steer a terminal, such as a line break, are escaped likewise.
    """
    raw = name.encode(errors="backslashreplace") if isinstance(name, str) else os.fsencode(name)
    return _STEERING.sub(lambda found: ascii(found[0])[1:-1], raw.decode(errors="backslashreplace"))


def show_bytes(count: float) -> str:
    """1.4 MB, 45.2 GB."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def show_duration(seconds: float) -> str:
    """The two largest units of what was measured: 52 s, 1 min 52 s, 2 h 14 min, 3 d 4 h."""
    seconds = round(seconds)
    for unit, size, below, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= size:
            return f"{seconds // size} {unit} {seconds % size // part} {below}"
    return f"{seconds} s"


def show_estimate(seconds: float) -> str:
    """One unit, for a duration that is only known roughly: 42 s, 12 min, 1.6 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def show_time_left(seconds: float) -> str:
    """1:02:03 or 2:03, as a progress bar shows it."""
    minutes, second = divmod(int(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"


def show_number(value: float) -> str:
    """One decimal, and none where it is a whole number."""
    return f"{value:.1f}".removesuffix(".0")
