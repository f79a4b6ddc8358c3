"""The GPUs of a run as samples: use, memory, power, heat, clocks, errors, energy. NVML tells; torch is not asked.

NVML may hang when a GPU fails. So it is asked in a thread of its own, which nobody waits for longer than NVML_SECONDS.
Nothing here changes a setting of a GPU.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

import pynvml

from trainer.process.counts import GPU_COUNT
from trainer.telemetry.cards import (
    DRIVER_LOADED_ANEW,
    Card,
    GpuLostError,
    find_cards,
    read_all,
    read_joules,
    read_xids,
    watch_xids,
)
from trainer.telemetry.energy import Energy

__all__ = ["GpuLostError", "Gpus"]

NVML_SECONDS = 3.0  # an answer takes milliseconds, and 20 more for each direction of PCIe of each card
DEVICE_FILES = Path("/dev")
NO_DRIVER = {pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED}


class Gpus:
    """The GPUs that this run uses. `open` finds them, `sample` asks them, `close` lets go of the driver."""

    def __init__(self, say: Callable[[str], None], environ: Mapping[str, str]):
        self.say, self.environ = say, environ
        self.cards: list[Card] = []
        self.is_connected = False
        self.events: Any = None
        self.xids, self.last_xid = 0, 0
        self.energy = Energy()
        self.told: set[str] = set()
        self.question: threading.Thread | None = None  # the last one, which NVML may not have answered yet

    @classmethod
    def open(cls, say: Callable[[str], None]) -> Gpus | None:
        """The GPUs that CUDA_VISIBLE_DEVICES names, or all; None where the run uses none, or none may be asked.

        One line is said where there is a GPU and the driver refuses. Without a driver nothing is said.
        """
        gpus = cls(say, os.environ)
        try:
            gpus._ask(gpus._connect)
        except GpuLostError:
            return gpus  # whose first sample says so
        except pynvml.NVMLError as error:
            if error.value not in NO_DRIVER or any(DEVICE_FILES.glob("nvidia[0-9]*")):
                say(
                    f"what the GPU does is not recorded: NVML, a library of its driver, says {str(error)!r}. "
                    "A container needs NVIDIA_DRIVER_CAPABILITIES=compute,utility"
                )
        if gpus.cards or gpus.is_waiting():
            return gpus
        gpus.close()
        return None

    def sample(self) -> dict[str, float]:
        """The metrics that all cards and the driver know, by name: `gpu/…`, and `energy/kwh` of this attempt.

        It returns {} where NVML does not answer or refuses, which is said once. It takes NVML_SECONDS at most.
        Raises GpuLostError, each time, where a GPU is lost or needs a reset.
        """
        if self.is_waiting():
            self._tell(
                "NVML, a library of the GPU's driver, does not answer: what the GPU does is not recorded until it does"
            )
            return {}
        try:
            return self._ask(self._read) or {}
        except GpuLostError as error:
            xid = f" after Xid {self.last_xid}" if self.last_xid else ""
            raise GpuLostError(f"{error}{xid}") from error
        except pynvml.NVMLError as error:
            self._tell(f"what the GPU does is not recorded for now: NVML says {str(error)!r}")
            return {}

    def close(self) -> None:
        """Let go of the driver. A question that hangs is left alone: its thread ends with the process."""
        if not self.is_waiting():
            with suppress(pynvml.NVMLError):
                self._ask(pynvml.nvmlShutdown)

    def is_waiting(self) -> bool:
        """Whether NVML still owes the answer to an earlier question."""
        return self.question is not None and self.question.is_alive()

    def _connect(self) -> None:
        self.is_connected = False
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()  # of an earlier connection
        pynvml.nvmlInit()
        cards = find_cards(self.environ) if self.environ.get(GPU_COUNT) != "0" else []  # a run on the CPU uses none
        if (missing := len(self.cards) - len(cards)) > 0:
            raise GpuLostError(f"{missing} of {len(self.cards)} GPUs are gone since the driver was loaded anew")
        self.cards, self.events = cards, watch_xids(cards)
        self.is_connected = True

    def _read(self) -> dict[str, float]:
        if not self.is_connected:
            self._connect()
        try:
            return self._read_cards()
        except pynvml.NVMLError as error:
            if error.value not in DRIVER_LOADED_ANEW:
                raise
            self._connect()
            return self._read_cards()

    def _read_cards(self) -> dict[str, float]:
        if not self.cards:
            return {}
        xids = {}
        if self.events is not None:
            for number in read_xids(self.events):
                self.xids, self.last_xid = self.xids + 1, number
                self._tell(f"the GPU's driver reports Xid {number}; NVIDIA's list of Xid errors says what it means")
            xids = {"gpu/xid_count": float(self.xids)}
        metrics = read_all(self.cards)
        watts, joules = metrics.get("gpu/power_watts"), read_joules(self.cards)
        kwh = self.energy.add(watts, monotonic(), joules)
        return metrics | xids | ({} if watts is None and joules is None else {"energy/kwh": kwh})

    def _ask(self, question: Callable[[], Any]) -> Any:
        """The answer of NVML, or None where it has not come in time. Raises NVMLError, GpuLostError."""
        box: dict[str, Any] = {}

        def run() -> None:
            try:
                box["answer"] = question()
            except Exception as error:  # noqa: BLE001  # raised below, in the thread that asked
                box["error"] = error

        self.question = threading.Thread(target=run, daemon=True, name="nvml")
        self.question.start()
        self.question.join(NVML_SECONDS)
        if "error" in box:
            raise box["error"]
        return box.get("answer")

    def _tell(self, line: str) -> None:
        if line not in self.told:
            self.told.add(line)
            self.say(line)
