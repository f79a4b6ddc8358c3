"""Waiting for what AWS does by itself, with a line that says what it waits for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from infra.operate.rehearsal.record import UnseenError
from infra.operate.session import AwsError
from infra.operate.terminal import LiveLine
from infra.operate.text import weekday_time

LOOK_SECONDS = 1.0
SILENT_AWS_SECONDS = 90.0  # for so long AWS may refuse or not answer before a wait gives up
Looked = TypeVar("Looked")


def wait_for(what: str, look: Callable[[], Looked], until: float, why: Callable[[], str] = str) -> Looked:
    """Look each second until there is something. Returns it.

    Raises UnseenError at `until`, in Unix seconds, with what `why` says; and AwsError if AWS fails for too long.
    """
    failing_since = 0.0
    with LiveLine() as live:
        while True:
            try:
                if seen := look():
                    return seen
                failing_since = 0.0
            except AwsError:
                failing_since = failing_since or time.monotonic()
                if time.monotonic() > failing_since + SILENT_AWS_SECONDS:
                    raise
            if time.time() > until:
                raise UnseenError("; ".join(filter(None, (f"{what}: not in time", why()))))
            live.show(f"waiting for {what}, until {weekday_time(until)} at most")
            time.sleep(LOOK_SECONDS)
