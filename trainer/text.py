"""How the trainer speaks to people: lines on standard error and output, and names, bytes and durations as text.

Names, messages and numbers may come from a store, a file or an archive. So nothing else in the trainer prints, and all
text goes through one filter here: what steers a terminal is escaped, and a line that is too long is cut.
Standard library only. What the operator's commands print is made in `infra.operate.terminal`.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, TextIO

MOST_LETTERS_OF_A_LINE = 4_000  # of what is shown: no honest line has more
_STEERING = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060\u2066-\u2069\ud800-\udfff\ufeff]")


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
    filter_tracebacks()
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


def filter_tracebacks() -> None:
    """Let what an unexpected error says go through the filter, too, also that of a thread."""
    sys.excepthook = lambda *error: _tell_error("".join(traceback.format_exception(*error)))
    threading.excepthook = _tell_error_of_thread


def _tell_error(text: str) -> None:
    tell(text.rstrip("\n"), sys.stderr)


def _tell_error_of_thread(error: threading.ExceptHookArgs) -> None:
    if error.exc_type is not SystemExit:  # which ends a thread without a word
        name = error.thread.name if error.thread else "unknown"
        lines = traceback.format_exception(error.exc_type, error.exc_value, error.exc_traceback)
        _tell_error(f"Exception in thread {name}:\n{''.join(lines)}")


def say(line: object) -> None:
    """A line on standard error, written at once: a signal handler may speak between two lines of the program."""
    with contextlib.suppress(OSError):  # the terminal was closed, which is no reason to stop
        os.write(2, f"{show_lines(str(line))}\n".encode(errors="backslashreplace"))


def tell(text: object, file: TextIO | None = None) -> None:
    """Print the text on standard output, where the answers of a command go, or on another file."""
    print(show_lines(str(text)), file=file or sys.stdout, flush=True)


def tell_json(value: object) -> None:
    """Print a value as JSON on standard output, whole however long it is. No letter of it steers a terminal."""
    print(json.dumps(value, indent=1).replace("\x7f", "\\u007f"), flush=True)


def show_lines(text: str) -> str:
    r"""The text as any terminal can take it. Its lines stay; what else steers one is escaped, as in \x1b.

    A line of more than MOST_LETTERS_OF_A_LINE is cut.
    """
    return "\n".join(_show_line(line) for line in text.split("\n"))


def _show_line(line: str) -> str:
    shown = "\t".join(_escape(part) for part in line[: MOST_LETTERS_OF_A_LINE + 1].split("\t"))
    return shown if len(shown) <= MOST_LETTERS_OF_A_LINE else f"{shown[: MOST_LETTERS_OF_A_LINE - 1]}…"


def _escape(text: str) -> str:
    return _STEERING.sub(lambda found: ascii(found[0])[1:-1], text)


def show_name(name: str | Path) -> str:
    r"""A name as text that any terminal and any format can take. A path may have bytes that are no UTF-8: caf\xe9.JPEG.

    Characters that steer a terminal, such as a line break, are escaped likewise.
    """
    raw = name.encode(errors="backslashreplace") if isinstance(name, str) else os.fsencode(name)
    return _escape(raw.decode(errors="backslashreplace"))


def show_bytes(count: float) -> str:
    """1.4 MB, 45.2 GB."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def show_sha256(digest: str) -> str:
    """SHA-256 0123456789abcdef: enough digits to compare by eye, and too many for a forger to hit."""
    return f"SHA-256 {digest[:16]}"


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


def show_share(share: float, decimals: int = 2) -> str:
    """95.12 %, of a fraction."""
    return f"{100 * share:.{decimals}f} %"


def show_number(value: float) -> str:
    """One decimal, and none where it is a whole number."""
    return f"{value:.1f}".removesuffix(".0")
