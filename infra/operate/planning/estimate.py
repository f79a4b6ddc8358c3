"""Hours and dollars of a run on each type of machine: start, copying, compiling, training by stages, validation.

This is the one cost model. `launch`, `cost`, `deploy`, `preflight` and `recipes` all ask it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from infra.operate.planning.catalog import IMAGENET_SOURCE_GB, LEAST_POOLS, InstanceType, instance_type
from infra.operate.planning.speeds import SPEED_SOURCES, gpu_speed, loader_speed, val_speed
from infra.operate.planning.work import IMAGENET, Images, Stage, Work

MOST_TIMES_THE_CHEAPEST = 1.35  # dollars per image: what costs more is offered only to reach LEAST_POOLS
# Allowances: nobody timed them on AWS. A GPU machine is up in 100 s (SkyPilot), then it pulls and unpacks the image.
START_SECONDS = 360.0
COPY_GB_PER_SECOND = 0.3  # S3 to NVMe: a g5.xlarge's 2.5 Gb/s, which larger machines and the first minutes exceed
COMPILE_SECONDS = (
    120.0  # for each size of images: 58 s on 16 vCPUs (docs/decisions/compiled-kernels.md), fewer take longer
)
PREPARE_IMAGES_PER_SECOND_PER_VCPU = 112  # 329 per core (`make bench-prepare`) x .34, a vCPU of g5 in such cores
DOWNLOAD_GB_PER_HOUR = 180  # of `prepare`, an assumption: 50 MB/s
# Of ImageNet's training images, by the short side that is stored; 2048: as they are (benchmarks/results/copies.json)
COPY_GB = {128: 10.9, 256: 36.5, 320: 56.8, 480: 138.2, 2048: 147.0}
VAL_GB = 2.1  # at 320 px


@dataclass(frozen=True)
class StageSpeed:
    """One stage on one type. `wanted` images/s would keep its GPU busy, `fed` is what its loader gives."""

    pixels: int
    epochs: float
    wanted: float
    fed: float
    source: str  # of `wanted`: measured, table or projected

    @property
    def images_per_second(self) -> float:
        return min(self.wanted, self.fed)


@dataclass(frozen=True)
class Hours:
    """What the hours of a run go to."""

    start: float
    prepare: float  # of data that the machine must download and prepare itself
    copy: float
    compile: float
    train: float
    validate: float

    @property
    def total(self) -> float:
        return self.start + self.prepare + self.copy + self.compile + self.train + self.validate


@dataclass(frozen=True)
class Estimate:
    """Hours and dollars of one run on one type. The dollars are those of its machines, their disks and addresses."""

    type: str
    usd_per_hour: float  # of all its machines, as AWS sells them
    images_per_second: float  # of training, on average
    hours: float
    usd: float
    usd_per_million_images: float
    source: str = ""  # of the speed; the most doubtful one of all stages
    of_hours: Hours = Hours(0, 0, 0, 0, 0, 0)
    stages: tuple[StageSpeed, ...] = ()
    efficiency: float = 1.0  # the speed over that of as many GPUs, each of which trains alone


@dataclass(frozen=True)
class DataSize:
    """What a run trains on: how many images, how large, and whether it is prepared."""

    images: Images
    copied_gb: float
    is_prepared: bool = True


def data_of(work: Work) -> DataSize:
    """The recipe's own data, prepared."""
    if work.data == "digits":
        return DataSize(work.images, 0.0)
    return DataSize(IMAGENET, stored_gb(work.train_sides))


def stored_gb(sides: Iterable[int]) -> float:
    """Gigabytes of prepared ImageNet: a training copy for each short side, and the validation images."""
    return sum(map(copy_gb, sides)) + VAL_GB


def copy_gb(side: int) -> float:
    """By the area between the sides that were measured. Larger ones are the originals, which nothing enlarges."""
    known = sorted(COPY_GB)
    if side >= known[-1]:
        return COPY_GB[known[-1]]
    above = next(one for one in known if one >= side)
    below = max((one for one in known if one < above), default=0)
    share = (side**2 - below**2) / (above**2 - below**2)
    low = COPY_GB.get(below, 0.0)
    return low + share * (COPY_GB[above] - low)


def estimate_alone(work: Work, type: InstanceType, price: float, data: DataSize, extras: float) -> Estimate:
    """A run on one GPU of the type with its share of the vCPUs, at the price of the whole machine."""
    share = replace(type, vcpus=type.vcpus // type.gpus)
    stages = tuple(_stage(work, share, stage) for stage in work.stages)
    seconds = sum(stage.epochs * data.images.train / stage.images_per_second for stage in stages)
    preparing = 0.0 if data.is_prepared else 1 / _prepare_speed(type) * IMAGENET.train
    of_hours = Hours(
        start=START_SECONDS / 3600,
        prepare=preparing / 3600,
        copy=data.copied_gb / COPY_GB_PER_SECOND / 3600,
        compile=work.compile * len({stage.pixels for stage in stages}) * COMPILE_SECONDS / 3600,
        train=seconds / 3600,
        validate=work.validations * data.images.val / val_speed(share, work) / 3600,
    )
    speed = sum(stage.epochs for stage in stages) * data.images.train / seconds
    source = max((stage.source for stage in stages), key=SPEED_SOURCES.index)
    return Estimate(
        type.name, price, speed, of_hours.total, of_hours.total * (price + extras), price / 3600 / speed * 1e6, source,
        of_hours, stages,
    )  # fmt: skip


def _stage(work: Work, type: InstanceType, stage: Stage) -> StageSpeed:
    wanted = gpu_speed(type.gpu, work, stage.pixels)
    fed = loader_speed(type, work, stage.pixels)
    return StageSpeed(stage.pixels, stage.epochs, wanted.images_per_second, fed, wanted.source)


def estimate_prepare(
    types: Collection[str], prices: Mapping[str, float], extras_usd_per_hour: float = 0.0
) -> list[Estimate]:
    """An estimate for each type of preparing ImageNet. Download and decoding overlap, so the slower one counts."""
    found = []
    for type in map(instance_type, types):
        price, speed = prices[type.name], _prepare_speed(type)
        hours = START_SECONDS / 3600 + IMAGENET.train / speed / 3600
        per_million = price / 3600 / speed * 1e6
        found.append(Estimate(type.name, price, speed, hours, hours * (price + extras_usd_per_hour), per_million))
    return ordered(found)


def _prepare_speed(type: InstanceType) -> float:
    """Images/s that a machine downloads and prepares."""
    fastest = IMAGENET.train / (IMAGENET_SOURCE_GB / DOWNLOAD_GB_PER_HOUR * 3600)
    return min(type.vcpus * PREPARE_IMAGES_PER_SECOND_PER_VCPU, fastest)


def ordered(estimates: Iterable[Estimate]) -> list[Estimate]:
    return sorted(estimates, key=lambda one: (one.usd_per_million_images, one.usd_per_hour))


def offered(estimates: Sequence[Estimate], zones: int) -> list[Estimate]:
    """The types to offer to AWS: those near the cheapest per image, and at least as many as make LEAST_POOLS pools.

    AWS chooses among them by price per hour and by capacity, and ignores their order. So only types that cost little
    more per image are offered.
    """
    limit = MOST_TIMES_THE_CHEAPEST * estimates[0].usd_per_million_images
    enough = math.ceil(LEAST_POOLS / max(zones, 1))
    return [one for place, one in enumerate(estimates) if place < enough or one.usd_per_million_images <= limit]
