"""How far a long job is: a bar on a terminal, else plain lines now and then. Knows nothing of what is counted."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from tqdm import tqdm

LINE_EVERY_SECONDS = 10.0


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Track:
    """Counts up to `total` from any thread; `listener` is told of every step (the heartbeat's progress counter)."""

    def __init__(self, total: int, unit: str, what: str, listener: Callable[[int], None] | None = None) -> None:
        self._total, self._unit, self._what, self._listener = total, unit, what, listener
        self._done, self._lock = 0, threading.Lock()
        self._start = self._last = time.monotonic()
        self._bar: tqdm[Any] | None = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, desc=what, unit=unit, unit_scale=True, file=sys.stderr)
        else:
            say(f"{what}: {total:,} {unit}")

    def __enter__(self) -> Track:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            now = time.monotonic()
            if self._bar is not None:
                self._bar.update(count)
            elif now - self._last >= LINE_EVERY_SECONDS:
                self._last, rate = now, self._done / (now - self._start)
                left = (self._total - self._done) / rate if rate else 0.0
                say(f"{self._what}: {self._done:,}/{self._total:,} {self._unit}, {rate:,.0f}/s, {left:.0f} s left")
        if self._listener is not None:
            self._listener(count)
