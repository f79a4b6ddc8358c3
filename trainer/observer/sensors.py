"""Questions that may hang, or take seconds, each asked in a thread of its own again and again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from trainer.telemetry.samples import SAMPLE_SECONDS
from trainer.text import say

Values = Mapping[str, float]


class Sensor:
    """`open` is called once, in the thread, and returns what is then called every so many seconds, or None. What
    fails is tried again; so is the start of the thread, at each look at the newest answer."""

    def __init__(self, name: str, open: Callable[[], Callable[[], Values] | None], seconds: float = SAMPLE_SECONDS):
        self.open, self.seconds = open, seconds
        self.values: Values = {}
        self.at = float("-inf")
        self.fault: Exception | None = None  # the last question had no answer
        self.name = name
        self.thread: threading.Thread | None = None
        self._begin()

    def newest(self) -> Values:
        """The last answer; {} if it is older than two that should have come since."""
        self._begin()
        return self.values if time.monotonic() < self.at + 2.5 * self.seconds else {}

    def _begin(self) -> None:
        if self.thread is None:
            thread = threading.Thread(target=self._work, daemon=True, name=self.name)
            try:
                self.fault = None
                thread.start()
                self.thread = thread
            except RuntimeError as error:  # this machine has no thread left
                self.fault = error

    def _work(self) -> None:
        read: Callable[[], Values] | None = None
        while True:
            try:
                read = read or self.open()
                if read is None:
                    self.fault = None
                    return
                self.values = read()
                self.at, self.fault = time.monotonic(), None
            except Exception as error:  # noqa: BLE001  # whatever it is: whoever looks at `fault` tells it
                self.fault = error
            time.sleep(self.seconds)


class LostDeviceError(Exception):
    """A GPU does not answer any more."""


def open_gpus() -> Callable[[], Values] | None:
    """The question to the GPUs of this run, which raises LostDeviceError; None if there are none."""
    from trainer.telemetry.gpu import GpuLostError, Gpus  # takes time to import, and not all machines have a GPU

    gpus = Gpus.open(say)
    if gpus is None:
        return None

    def read() -> Values:
        try:
            return gpus.sample()
        except GpuLostError as error:
            raise LostDeviceError(str(error)) from error

    return read
