"""How many images a second a machine trains, validates and decodes, for each size of images.

What this project measured on a GPU comes first (benchmarks/results/gpu-….json), then the table of `catalog`. Every
other size, precision and network is projected from these, and each speed says which it is. The loader's figures come
from benchmarks/results/data.json; a test compares.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from infra.config import ROOT
from infra.operate.planning.catalog import GPUS, InstanceType
from infra.operate.planning.work import BASE, FULL_PIXELS, Work, trainer_facts

RESULTS = ROOT / "benchmarks/results"
ROW = re.compile(r"(ours|compile)_(bf16|fp16)(?:@(\d+))?")  # of a GPU's results: the trainer's own step
RATE = "images_per_second"
MEASURED, TABLE, PROJECTED = "measured", "table", "projected"  # from the best to the most doubtful
SPEED_SOURCES = (MEASURED, TABLE, PROJECTED)
REFERENCE_BATCH = 256  # of its rows
REFERENCE = "H100"  # its ratios are taken for the GPUs that nobody measured
VCPU_CORES = 0.34  # a vCPU of g5 in cores of the machine that measured the loader
# Of such a core, for an image: µs beside the pixels, and µs for 1,000 pixels that are decoded. Fitted to data.json.
IMAGE_US = 60.0
PIXELS_US = 6.6
WIDTH_OVER_HEIGHT = 1.17  # of ImageNet's images on average, 468 x 401
ORIGINAL_SIDE = 401
ORIGINAL_TIMES = 1.3  # what a pixel of an original costs over one of a smaller copy: it has a higher quality
SHORTER = 0.93  # the shorter side of a crop over the root of its share, both of the image's
VAL_SIDE = 320  # of the stored validation images
VAL_SHARE = (224 / 232) ** 2  # that a centre crop takes of it


@dataclass(frozen=True)
class Speed:
    """Images/s, and where the figure comes from: measured, table or projected."""

    images_per_second: float
    source: str


@cache
def _rows(gpu: str) -> dict[str, Any]:
    """The rows of a GPU's results. Empty without results."""
    path = RESULTS / f"gpu-{gpu.lower().replace(' ', '-')}.json"
    return dict(json.loads(path.read_text())["rows"]) if path.exists() else {}


@cache
def measured(gpu: str) -> dict[tuple[bool, str], dict[int, float]]:
    """Images/s by pixels, for each of (compiled, precision). Empty for a GPU without results."""
    found: dict[tuple[bool, str], dict[int, float]] = {}
    for name, row in _rows(gpu).items():
        if match := ROW.fullmatch(name):
            how, precision, pixels = match.groups()
            found.setdefault((how == "compile", precision), {})[int(pixels or FULL_PIXELS)] = float(row[RATE])
    return found


def gpu_speed(gpu: str, work: Work, pixels: int) -> Speed:
    """Training images/s of a GPU that never waits for images."""
    plain = _plain_speed(gpu, work, pixels)
    is_plain = work.step_cost == 1.0 and work.network == BASE
    rate = plain.images_per_second / work.step_cost / network_cost(work.network)
    return Speed(rate, plain.source if is_plain else PROJECTED)


def _plain_speed(gpu: str, work: Work, pixels: int) -> Speed:
    """Of ResNet-50 without anything that costs more."""
    rates = measured(gpu).get((work.compile, work.precision), {})
    if pixels in rates:
        return Speed(rates[pixels], MEASURED)
    if rates:
        return Speed(_between(rates, pixels), PROJECTED)
    eager = measured(gpu).get((False, work.precision))
    rate = _between(eager or {FULL_PIXELS: float(GPUS[gpu].images_per_second)}, pixels)
    if work.compile:
        return Speed(rate * compiled_times(), PROJECTED)
    return Speed(rate, TABLE if pixels == FULL_PIXELS and not eager else PROJECTED)


def _between(rates: dict[int, float], pixels: int) -> float:
    """The rate at a size. Between two known ones an image's time is a line over its area, outside in proportion."""
    below, above = max((p for p in rates if p <= pixels), default=0), min((p for p in rates if p >= pixels), default=0)
    if below and above and below != above:
        share = (pixels**2 - below**2) / (above**2 - below**2)
        return 1 / ((1 - share) / rates[below] + share / rates[above])
    nearest = below or above
    return rates[nearest] * (nearest / pixels) ** 2


@cache
def compiled_times() -> float:
    """How many times as fast torch.compile makes a step, by the GPU that was measured with and without it."""
    rates = measured(REFERENCE)
    return rates[True, "bf16"][FULL_PIXELS] / rates[False, "bf16"][FULL_PIXELS]


def fed_most(batch: int = REFERENCE_BATCH) -> float:
    """The most images/s that one process trains with while it decodes, so many images at once on the device.

    A GPU that took twice as many was fed so much. Each step costs the processor the launch of its kernels, and each
    image some of Python's lock, which decoding and launching share. Larger batches so launch less.
    """
    row = _rows(REFERENCE)["loader@112"]
    launch = row["synthetic"]["ms"] / 1000
    image = 1 / row["train_4_threads"][RATE] - launch / REFERENCE_BATCH
    return float(1 / (launch / batch + image))


@cache
def evaluation_times() -> float:
    """How many times as fast as training a validation is, by the GPU that was measured."""
    rows = _rows(REFERENCE)
    return float(rows["eval"]["bf16"][RATE] / rows["ours_bf16"][RATE])


def network_cost(name: str) -> float:
    """The time of a network over that of ResNet-50, by their operations: a rough guide."""
    networks = trainer_facts().get("networks", {})
    gmacs = {one: networks.get(one, {}).get("gmacs") for one in (name, BASE)}
    return gmacs[name] / gmacs[BASE] if gmacs[name] and gmacs[BASE] else 1.0


def val_speed(type: InstanceType, work: Work) -> float:
    """Validation images/s: the slower of GPU and loader. An average of the weights is scored, too."""
    gpu = gpu_speed(type.gpu, replace(work, compile=False), work.val_crop).images_per_second * evaluation_times()
    decoding = min(vcpus_speed(type, IMAGE_US + PIXELS_US * VAL_SHARE * _area(VAL_SIDE) / 1000), fed_most())
    return min(gpu / work.val_passes, decoding)


def loader_speed(type: InstanceType, work: Work, pixels: int) -> float:
    """Training images/s that the machine decodes and crops."""
    return min(vcpus_speed(type, crop_us(work, pixels)), fed_most(work.device_batch))


def vcpus_speed(type: InstanceType, image_us: float) -> float:
    return type.vcpus * VCPU_CORES * 1e6 / image_us


def crop_us(work: Work, pixels: int) -> float:
    """Microseconds of a core for a random crop, on average over the shares of an image that crops take."""
    low, high = work.crop_scale
    shares = [low + (high - low) * (i + 0.5) / 100 for i in range(100)]
    sides = [_side_for(work, pixels, share) for share in shares]
    decoded = [
        share * _area(side) * (ORIGINAL_TIMES if side > ORIGINAL_SIDE else 1.0)
        for share, side in zip(shares, sides, strict=True)
    ]
    return IMAGE_US + PIXELS_US * sum(decoded) / len(decoded) / 1000


def _side_for(work: Work, pixels: int, share: float) -> int:
    """The stored copy that a crop is read from: by its own share of the image, or the same one for all crops."""
    sides, wanted = sorted(work.train_sides), pixels * 8 / 7
    if work.copy_per_crop:
        wanted /= math.sqrt(share) * SHORTER
    return next((side for side in sides if side >= wanted), sides[-1])


def _area(side: int) -> float:
    return min(side, ORIGINAL_SIDE) ** 2 * WIDTH_OVER_HEIGHT
