"""Can the loader keep a GPU busy? What GPUs eat, what four vCPU of a cheap instance feed, a consumer with that pace."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.images import BATCH, THREADS, Images
from benchmarks.peers import loader

# Training images/s of ResNet-50 in mixed precision, by pixels; other resolutions are scaled by their pixels. A10G: a
# public run on a g5.xlarge (224), the rest and the other GPUs from what their best public results need at 160 px.
NEEDS = {
    "A10G": {224: 811.0, 160: 1430.0, 112: 3000.0, 88: 5000.0},
    "L40S": {160: 3268.0},
    "H100": {160: 12636.0},
}
VCPUS = 4  # of g5.xlarge and g6e.xlarge
VCPU_SHARE = (
    0.34  # of a core of the machine for which the limits hold that a vCPU of these instances is worth: inferred
)
PACE_SECONDS = 6.0


def need(gpu: str, pixels: int) -> float:
    """Images/s that a GPU eats."""
    known = min(NEEDS[gpu], key=lambda other: abs(other - pixels))
    return NEEDS[gpu][known] * (known / pixels) ** 2


def scaled_need(gpu: str, pixels: int) -> float:
    """Images/s that THREADS cores here must feed, if VCPUS vCPU there are to feed the GPU."""
    return need(gpu, pixels) * THREADS / (VCPUS * VCPU_SHARE)


def data_wait(images: Images, pixels: int, rate: float) -> float:
    """Share of its time that a consumer waits for data which sleeps over each batch as long as a GPU computes on it."""
    steps = max(10, round(PACE_SECONDS * rate / BATCH))
    with loader(images, pixels, steps) as batches:
        iterator = iter(batches)
        next(iterator)  # the start, when nothing is ready yet, is not the pace
        waited, started = batches.wait_seconds, time.perf_counter()
        for _ in range(steps - 1):
            time.sleep(BATCH / rate)  # not the interpreter lock: a GPU does not hold it
            next(iterator)
        return (batches.wait_seconds - waited) / (time.perf_counter() - started)


def fed(per_core: dict[int, float]) -> list[dict[str, Any]]:
    """Each GPU and resolution: images/s needed, images/s that the VCPUS give, from images/s per core here."""
    return [
        {
            "gpu": gpu,
            "pixels": pixels,
            "needs": round(need(gpu, pixels)),
            "four_vcpu_give": round(rate * VCPU_SHARE * VCPUS),
            "fed": rate * VCPU_SHARE * VCPUS >= need(gpu, pixels),
        }
        for gpu in NEEDS
        for pixels, rate in per_core.items()
    ]
