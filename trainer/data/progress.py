"""Shows how far a long job is: a bar on a terminal, elsewhere a plain line now and then."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from tqdm import tqdm

from trainer.text import say, show_estimate, show_name

ProgressListener = Callable[[int], None]  # is told how many more images or bytes are done

LINE_EVERY_SECONDS = 10.0


def show_rate(images: int, seconds: float, threads: int) -> str:
    """230 images/s (2 threads)."""
    return f"{images / seconds:,.0f} images/s ({threads} thread{'s' if threads > 1 else ''})"


class Track:
    """Counts up to `total`, from any thread. `listener` is told of every step: the heartbeat counts them."""

    def __init__(self, total: int, unit: str, what: str, listener: ProgressListener | None = None) -> None:
        self._total, self._unit, self._what, self._listener = total, unit, what, listener
        self._done, self._skipped, self._lock = 0, 0, threading.Lock()
        self._warm_up = 0  # are done with the first step, whose time does not count in the rate: it compiles
        self._start = self._last = self._warm = time.monotonic()
        self._bar: tqdm[Any] | None = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, desc=show_name(what), unit=unit, unit_scale=True, file=sys.stderr)
        else:
            say(f"{what}: {total:,} {unit}")

    def __enter__(self) -> Track:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()

    @property
    def worked(self) -> int:
        """How many are done, without the skipped ones."""
        return self._done - self._skipped

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._start

    def add(self, count: int, *, skipped: bool = False) -> None:
        """Count more that are done. `skipped` ones cost no time and do not count in the rate."""
        with self._lock:
            self._done += count
            self._skipped += count if skipped else 0
            now = time.monotonic()
            if not (skipped or self._warm_up):
                self._warm_up, self._warm = count, now
                if self._bar is not None:
                    self._bar.start_t = self._bar.last_print_t = time.time()  # tqdm's clock
            if self._bar is not None:
                self._bar.initial = self._skipped + self._warm_up
                self._bar.update(count)
            elif now - self._last >= LINE_EVERY_SECONDS:
                self._last, rate = now, (self.worked - self._warm_up) / max(now - self._warm, 1e-9)
                left = f"{show_estimate((self._total - self._done) / rate)} left" if rate else "time left unknown"
                say(f"{self._what}: {self._done:,}/{self._total:,} {self._unit}, {rate:,.0f}/s, {left}")
        if self._listener is not None:
            self._listener(count)
