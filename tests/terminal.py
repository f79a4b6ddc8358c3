"""A program on a real terminal (a pty): what it draws, and keys pressed while it runs."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import termios
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tests import PATIENCE, ROOT

CTRL_C = b"\x03"
HANG_UP = b""  # no key: the terminal is closed


def on_a_terminal(
    command: Sequence[str], keys: Mapping[bytes, bytes] | None = None, timeout: float = PATIENCE, folder: Path = ROOT,
    columns: int = 100,
) -> tuple[int, str]:  # fmt: skip
    """Exit code and everything that was drawn. `keys`: as soon as the first is seen, the second is pressed, once."""
    pid, terminal = pty.fork()
    if pid == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        os.chdir(folder)
        os.execvpe(command[0], [*command], dict(os.environ))  # without the COLUMNS that readline sets behind Python
    waiting, seen, deadline = dict(keys or {}), b"", time.monotonic() + timeout
    drawn = select.poll()  # which takes file numbers beyond 1,024, too
    drawn.register(terminal, select.POLLIN)
    while time.monotonic() < deadline:
        if not drawn.poll(1000):
            continue
        try:
            seen += os.read(terminal, 65536)
        except OSError:  # EIO: the program has closed its end
            break
        for cue in [cue for cue in waiting if cue in seen]:
            key = waiting.pop(cue)
            os.write(terminal, key)
            deadline = deadline if key else 0
    os.close(terminal)
    with suppress(ProcessLookupError):  # a shell passes the hang-up on to the jobs that still run
        os.killpg(pid, signal.SIGHUP)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), seen.decode()
