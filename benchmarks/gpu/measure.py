"""What every row has: where it runs, how it takes time, what the card says of itself meanwhile."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

BATCH, TINY_BATCH, TINY_PIXELS = 256, 2, 32
WARM_STEPS, LEAST_SECONDS = 5, 0.5  # before and in each round
Found = dict[str, Any]


class NotMeasuredError(Exception):
    """A row that cannot be measured here; its text says why. It has not failed."""


@dataclass(frozen=True)
class Place:
    """What a row runs on, and where."""

    device: torch.device
    tiny: bool  # a few small images and steps, to see that every row works
    batch: int
    pixels: int  # of a side of a training image
    images: Path  # prepared images; made there where there are none
    scratch: Path
    seconds: float  # what the row may take

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def network(self) -> str:
        return "shufflenet_v2_x0_5" if self.tiny else "resnet50"

    def drain(self) -> None:
        """Wait until the GPU has done all that it was given."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def forget(self) -> None:
        """Give back what the row before has left in the GPU's memory."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def timed(place: Place, step: Callable[[], Any], batch: int = 0, *, rounds: int = 5) -> Found:
    """Images/s by the wall clock of a drained GPU: the median of rounds of at least half a second.

    `enqueue_ms` is what the processor needs to enqueue the first step of a round.
    """
    batch = batch or place.batch
    first, steps = _warm_up(place, step)
    rounds = 2 if place.tiny else rounds
    took, enqueue, card = [], [], dict[str, float]()
    for _ in range(rounds):
        begin = time.perf_counter()
        step()
        enqueue.append(time.perf_counter() - begin)
        for _ in range(steps - 1):
            step()
        card = card_now() if place.on_gpu else {}
        place.drain()
        took.append((time.perf_counter() - begin) / steps)
    median = statistics.median(took)
    return {
        "images_per_second": round(batch / median), "ms": round(median * 1e3, 3),
        "spread": round((max(took) - min(took)) / median, 4),
        "enqueue_ms": round(statistics.median(enqueue) * 1e3, 2),
        "first_step_s": round(first, 2), "steps": steps * rounds, "batch": batch, **memory_peak(place), **card,
    }  # fmt: skip


def _warm_up(place: Place, step: Callable[[], Any]) -> tuple[float, int]:
    """Seconds of the first step, and how many steps fill a round."""
    begin = time.perf_counter()
    step()
    place.drain()
    first = time.perf_counter() - begin
    if place.tiny:
        return first, 2
    for _ in range(WARM_STEPS):
        step()
    place.drain()
    begin = time.perf_counter()
    step()
    place.drain()
    return first, max(3, int(LEAST_SECONDS / (time.perf_counter() - begin)))


def memory_peak(place: Place) -> Found:
    if not place.on_gpu:
        return {}
    allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    return {"peak_gb": round(allocated / 1e9, 2), "reserved_gb": round(reserved / 1e9, 2)}


@cache
def _nvml() -> Any:
    """NVML and the handle of the first GPU, or None where Python has no binding of it."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return pynvml, pynvml.nvmlDeviceGetHandleByIndex(0)
    except Exception:  # noqa: BLE001  a missing library, driver or right: the rows are measured without
        return None


def card_now() -> dict[str, float]:
    """Clock and power of the card in this moment; {} where it does not tell."""
    if _nvml() is None:
        return {}
    nvml, handle = _nvml()
    try:
        return {
            "sm_mhz": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "watts": round(nvml.nvmlDeviceGetPowerUsage(handle) / 1e3),
        }
    except nvml.NVMLError:
        return {}


def noise(place: Place, batch: int, pixels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random images (N, pixels, pixels, 3) uint8, labels (N,) int64 and flips (N,) bool on the device."""
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (batch, pixels, pixels, 3), dtype=np.uint8))
    labels, flips = torch.from_numpy(rng.integers(0, 1000, batch)), torch.from_numpy(rng.random(batch) < 0.5)
    return images.to(place.device), labels.to(place.device), flips.to(place.device)
