"""The GPUs of a run as samples: use, memory, power, heat, clocks, errors, energy. NVML tells; torch is not asked.

NVML may hang when a GPU fails, so it is asked in a thread of its own that nobody waits for longer than
NVML_SECONDS. Nothing here changes a setting of a GPU.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pynvml

from trainer.process.children import GPU_COUNT
from trainer.telemetry.cards import ASK_AGAIN, GONE, Card, find_cards, read_all, read_joules, read_xids, watch_xids
from trainer.telemetry.energy import Energy

NVML_SECONDS = 5.0
DEVICE_FILES = Path("/dev")
NO_DRIVER = {pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED}


class GpuLostError(Exception):
    """A GPU of the run does not answer any more: it fell off the bus, or needs a reset."""


class Gpus:
    """The GPUs that this run uses. `open` finds them, `sample` asks them, `close` lets go of the driver."""

    def __init__(self, say: Callable[[str], None], environ: Mapping[str, str]):
        self.say, self.environ = say, environ
        self.cards: list[Card] = []
        self.events: Any = None
        self.xids, self.last_xid = 0, 0
        self.energy = Energy()
        self.told: set[str] = set()
        self.question: threading.Thread | None = None  # that NVML has not answered yet

    @classmethod
    def open(cls, say: Callable[[str], None]) -> Gpus | None:
        """The GPUs that CUDA_VISIBLE_DEVICES names, or all; None where the run uses none or none may be asked.

        One line is said where there is a GPU and the driver does not answer. Without a driver nothing is said.
        """
        gpus = cls(say, os.environ)
        try:
            gpus._ask(gpus._connect)
        except pynvml.NVMLError as error:
            if error.value not in GONE:
                if error.value not in NO_DRIVER or any(DEVICE_FILES.glob("nvidia[0-9]*")):
                    gpus._tell(
                        f"what the GPU does is not recorded: NVML, the driver's library, says {str(error)!r}. "
                        "A container needs NVIDIA_DRIVER_CAPABILITIES=compute,utility"
                    )
                gpus.close()
                return None
        return gpus if gpus.cards or gpus.is_waiting() else None

    def sample(self) -> dict[str, float]:
        """The metrics that this card and this driver know, by name: `gpu/…` and `energy/kwh` of this attempt.

        It returns {} where NVML does not answer, and says so once. It takes up to NVML_SECONDS.
        Raises GpuLostError, each time, where a GPU is lost or needs a reset.
        """
        try:
            return self._ask(self._read) or {}
        except pynvml.NVMLError as error:
            if error.value in GONE:
                xid = f" after Xid {self.last_xid}" if self.last_xid else ""
                names = ", ".join(card.name for card in self.cards) or "a GPU of this run"
                raise GpuLostError(f"{names}: NVML says {str(error)!r}{xid}") from error
            self._tell(f"what the GPU does is not recorded for now: NVML says {str(error)!r}")
            return {}

    def close(self) -> None:
        """Let go of the driver. A question that hangs is left alone."""
        with suppress(pynvml.NVMLError):
            self._ask(pynvml.nvmlShutdown)

    def is_waiting(self) -> bool:
        """Whether NVML still owes the answer to an earlier question."""
        return self.question is not None and self.question.is_alive()

    def _connect(self) -> None:
        pynvml.nvmlInit()
        cards = find_cards(self.environ)
        if self.environ.get(GPU_COUNT) == "0":
            cards = []  # the run trains on the CPU
        self.cards, self.events = cards, watch_xids(cards) if cards else None

    def _read(self) -> dict[str, float]:
        if not self.cards:
            self._connect()
        try:
            return self._read_cards()
        except pynvml.NVMLError as error:
            if error.value not in ASK_AGAIN:
                raise
            with suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()
            self._connect()
            return self._read_cards()

    def _read_cards(self) -> dict[str, float]:
        xids = {}
        if self.events is not None:
            for number in read_xids(self.events):
                self.xids, self.last_xid = self.xids + 1, number
                self._tell(f"the GPU's driver reports Xid {number}: NVIDIA's page on Xid errors says what it means")
            xids = {"gpu/xid_count": float(self.xids)}
        metrics = read_all(self.cards)
        joules = read_joules(self.cards)
        watts = metrics.get("gpu/power_watts")
        kwh = self.energy.add(watts, time.monotonic(), joules)
        return metrics | xids | ({} if watts is None and joules is None else {"energy/kwh": kwh})

    def _ask(self, question: Callable[[], Any]) -> Any:
        """The answer of NVML; None where it has not come in time, or an earlier one is still owed. Raises NVMLError."""
        if self.is_waiting():
            return None
        box: dict[str, Any] = {}

        def run() -> None:
            try:
                box["answer"] = question()
            except Exception as error:  # noqa: BLE001  # raised below, in the thread that asked
                box["error"] = error

        self.question = threading.Thread(target=run, daemon=True, name="nvml")
        self.question.start()
        self.question.join(NVML_SECONDS)
        if self.is_waiting():
            self._tell(f"NVML has not answered for {NVML_SECONDS:.0f} s: GPU metrics are absent until it does")
        if "error" in box:
            raise box["error"]
        return box.get("answer")

    def _tell(self, line: str) -> None:
        if line not in self.told:
            self.told.add(line)
            self.say(line)
