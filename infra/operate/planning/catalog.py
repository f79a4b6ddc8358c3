"""What machines have, what they cost and how fast they probably train: tables with dates and sources, and estimates.

This project measured none of these figures on AWS. Today's prices (`prices`) come first; the table is for when AWS does
not answer. There is no I/O here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from trainer.contract import UserError

PRICES_SOURCE = "AWS Pricing API for us-east-1 on 2026-01-19, as published in aws/karpenter-provider-aws"
IMAGENET_IMAGES = 1_281_167  # of the training set
IMAGENET_PREPARED_GB = 50  # all copies; `make bench-prepare`
IMAGENET_SOURCE_GB = 150  # what `prepare` downloads
PREPARE_IMAGES_PER_SECOND_PER_VCPU = 112  # 329 per core (`make bench-prepare`) x .34, see LOADER
LOADER_IMAGES_PER_SECOND_PER_VCPU = 988  # 344 µs of a core (`make bench-data`) x .34, a vCPU of g5 in such cores
DOWNLOAD_GB_PER_HOUR = 180  # of `prepare`, an assumption: 50 MB/s
START_HOURS = 0.25  # boot, image, data; an allowance
LEAST_POOLS = 12  # types x zones: with fewer, spot capacity is often gone
MOST_TIMES_THE_CHEAPEST = 1.35  # dollars per image: what costs more is offered only to reach LEAST_POOLS
# Beside the machine, list prices of us-east-1: aws.amazon.com/ebs/pricing (gp3), /vpc/pricing (public IPv4)
DISK_USD_PER_GIB_MONTH = 0.08
ADDRESS_USD_PER_HOUR = 0.005
HOURS_PER_MONTH = 730
MARKETS = ("spot", "on-demand")


@dataclass(frozen=True)
class Gpu:
    """How fast a GPU trains ResNet-50 at 224 px in mixed precision, and where that figure comes from."""

    memory_gib: int
    images_per_second: int
    source: str
    has_bf16: bool = True  # cuDNN has convolutions in bf16 from compute capability 8.0 on


def _from_bandwidth(gb_per_second: int) -> int:
    """Images/s from the memory bandwidth. Eager PyTorch moves 0.74 to 0.83 GB of GPU memory per image."""
    return round(gb_per_second / 0.77 / 10) * 10


GPUS = {
    "A10G": Gpu(22, 811, "a public run on g5.xlarge, eager PyTorch"),
    "L4": Gpu(22, _from_bandwidth(300), "derived from 300 GB/s"),
    "L40S": Gpu(44, _from_bandwidth(864), "derived from 864 GB/s"),
    "T4": Gpu(16, _from_bandwidth(320), "derived from 320 GB/s", has_bf16=False),
    "H100": Gpu(80, 3924, "`make bench-gpu`, benchmarks/results/gpu-h100.json"),  # as every GPU that has such a file
}


@dataclass(frozen=True)
class Quota:
    """A quota of vCPUs for a family of types. Spot and on-demand have codes of their own in Service Quotas."""

    words: str
    spot: str
    on_demand: str
    families: str  # how the types that count against it begin

    def code(self, market: str) -> str:
        return self.spot if market == "spot" else self.on_demand


QUOTAS = (
    Quota("G and VT", "L-3819A6DF", "L-DB2E81BA", r"(g|gr|vt)\d"),
    Quota("P5", "L-C4BD4855", "L-417A185B", r"p5"),
    Quota("P", "L-7212CCBC", "L-417A185B", r"p\d"),
    Quota("Standard", "L-34B43A08", "L-1216C47A", r"(a|c|d|h|i|im|is|m|r|t|z)\d"),
)


@dataclass(frozen=True)
class InstanceType:
    name: str
    vcpus: int
    memory_gib: int
    gpu: str  # "" for none
    nvme_gb: int
    usd_per_hour: float  # on demand, Linux, us-east-1

    @property
    def images_per_second(self) -> float:
        """What training can reach: the slower of GPU and loader."""
        return min(GPUS[self.gpu].images_per_second, self.vcpus * LOADER_IMAGES_PER_SECOND_PER_VCPU)


# vCPUs, memory and NVMe as `aws ec2 describe-instance-types` tells them.
TYPES = {
    type.name: type
    for type in (
        InstanceType("g4dn.xlarge", 4, 16, "T4", 125, 0.526),
        InstanceType("g4dn.2xlarge", 8, 32, "T4", 225, 0.752),
        InstanceType("g4dn.4xlarge", 16, 64, "T4", 225, 1.204),
        InstanceType("g5.xlarge", 4, 16, "A10G", 250, 1.006),
        InstanceType("g5.2xlarge", 8, 32, "A10G", 450, 1.212),
        InstanceType("g5.4xlarge", 16, 64, "A10G", 600, 1.624),
        InstanceType("g5.8xlarge", 32, 128, "A10G", 900, 2.448),
        InstanceType("g6.xlarge", 4, 16, "L4", 250, 0.8048),
        InstanceType("g6.2xlarge", 8, 32, "L4", 450, 0.9776),
        InstanceType("g6.4xlarge", 16, 64, "L4", 600, 1.3232),
        InstanceType("g6.8xlarge", 32, 128, "L4", 900, 2.0144),
        InstanceType("g6e.xlarge", 4, 32, "L40S", 250, 1.861),
        InstanceType("g6e.2xlarge", 8, 64, "L40S", 450, 2.24208),
        InstanceType("g6e.4xlarge", 16, 128, "L40S", 600, 3.00424),
        InstanceType("g6e.8xlarge", 32, 256, "L40S", 900, 4.52856),
        InstanceType("p5.4xlarge", 16, 256, "H100", 3800, 6.88),
        InstanceType("c7a.2xlarge", 8, 16, "", 0, 0.41056),
        InstanceType("c7i.2xlarge", 8, 16, "", 0, 0.357),
        InstanceType("c6a.2xlarge", 8, 16, "", 0, 0.306),
        InstanceType("c6i.2xlarge", 8, 16, "", 0, 0.34),
        InstanceType("m7a.2xlarge", 8, 32, "", 0, 0.46368),
        InstanceType("m7i.2xlarge", 8, 32, "", 0, 0.4032),
        InstanceType("m6a.2xlarge", 8, 32, "", 0, 0.3456),
        InstanceType("m6i.2xlarge", 8, 32, "", 0, 0.384),
    )
}


@dataclass(frozen=True)
class Work:
    """What a recipe computes. `images_per_epoch` counts images of 224 px; an image of 112 px counts a quarter."""

    epochs: int
    images_per_epoch: float
    data: str  # what it trains on unless told
    precision: str  # what it computes in unless told


# Kept in step with the trainer's recipes by test_catalog.py: the AWS app knows only the trainer's contract.
RECIPE_WORK = {
    "digits": Work(8, 29.3, "digits", "fp32"),  # 1,437 images of 32 px
    "finetune": Work(30, IMAGENET_IMAGES, "ILSVRC/imagenet-1k", "bf16"),
    "finetune-v2": Work(30, 0.6173 * IMAGENET_IMAGES, "ILSVRC/imagenet-1k", "bf16"),
    "folder": Work(30, IMAGENET_IMAGES, "", "bf16"),
    "thrift": Work(34, 0.3462 * IMAGENET_IMAGES, "ILSVRC/imagenet-1k", "bf16"),
    "mild": Work(32, 0.3295 * IMAGENET_IMAGES, "ILSVRC/imagenet-1k", "bf16"),
    "rn50-16": Work(16, 0.5663 * IMAGENET_IMAGES, "ILSVRC/imagenet-1k", "bf16"),
    "rn50-32": Work(32, 0.5593 * IMAGENET_IMAGES, "ILSVRC/imagenet-1k", "bf16"),
    "rn50-88": Work(88, 0.5536 * IMAGENET_IMAGES, "ILSVRC/imagenet-1k", "bf16"),
    "a3": Work(100, 0.5102 * IMAGENET_IMAGES, "ILSVRC/imagenet-1k", "bf16"),
    "v2-90": Work(90, 0.6173 * IMAGENET_IMAGES, "ILSVRC/imagenet-1k", "bf16"),
    "v2-300": Work(300, 0.6173 * IMAGENET_IMAGES, "ILSVRC/imagenet-1k", "bf16"),
    "v2": Work(600, 0.6173 * IMAGENET_IMAGES, "ILSVRC/imagenet-1k", "bf16"),
}


def instance_type(name: str) -> InstanceType:
    if name not in TYPES:
        raise UserError(
            f"instance type {name!r} is not in the table of infra/operate/planning/catalog.py, "
            f"so its price and speed are unknown: use {', '.join(TYPES)}, or add it there"
        )
    return TYPES[name]


def gpu_types(names: Iterable[str]) -> list[InstanceType]:
    """The types of these names. Raises UserError if one has no GPU."""
    types = [instance_type(name) for name in names]
    for type in types:
        if not type.gpu:
            raise UserError(
                f"instance type {type.name!r} has no GPU: use types of g5, g6 or g6e, for example g5.xlarge "
                "(resnet-spot:instance_types in cdk.json, or TYPES=)"
            )
    return types


def check_precision(names: Sequence[str], precision: str) -> None:
    """Raises UserError if a type's GPU cannot compute in this precision: its run would end as soon as it has begun."""
    able = [type.name for type in gpu_types(names) if GPUS[type.gpu].has_bf16]
    if precision == "bf16" and (unable := [name for name in names if name not in able]):
        raise UserError(
            f"{', '.join(unable)} cannot compute in bf16, which this run asks for or its recipe has: pass "
            f'ARGS="--precision fp16", or use other types, TYPES={",".join(able) or "g6.xlarge,g5.xlarge"}'
        )


def quota_of(type: str) -> Quota | None:
    """The quota that this type counts against. None if this project launches no such type."""
    return next((quota for quota in QUOTAS if re.match(quota.families, type)), None)


def work_of(recipe: str) -> Work:
    if recipe not in RECIPE_WORK:
        raise UserError(f"recipe {recipe!r} is unknown: choose one of {', '.join(RECIPE_WORK)} (RECIPE=finetune)")
    return RECIPE_WORK[recipe]


@dataclass(frozen=True)
class Estimate:
    """Hours and dollars of one run on one type."""

    type: str
    usd_per_hour: float  # of one machine
    images_per_second: float  # of one machine
    hours: float
    usd: float
    usd_per_million_images: float


def estimate(
    recipe: str,
    types: Collection[str],
    prices: Mapping[str, float],
    *,
    epochs: int = 0,
    share: float = 1.0,
) -> list[Estimate]:
    """An estimate for each type, the cheapest per image first. `share` is the data's size over the recipe's own."""
    work = work_of(recipe)
    images = (epochs or work.epochs) * work.images_per_epoch * share
    return _ordered(
        _estimate(type.name, prices[type.name], type.images_per_second, images, START_HOURS)
        for type in gpu_types(types)
    )


def estimate_prepare(types: Collection[str], prices: Mapping[str, float]) -> list[Estimate]:
    """An estimate for each type of preparing ImageNet. Download and decoding overlap, so the slower one counts."""
    download = IMAGENET_SOURCE_GB / DOWNLOAD_GB_PER_HOUR
    fastest = IMAGENET_IMAGES / download / 3600
    machines = [instance_type(name) for name in types]
    return _ordered(
        _estimate(
            machine.name,
            prices[machine.name],
            min(machine.vcpus * PREPARE_IMAGES_PER_SECOND_PER_VCPU, fastest),
            IMAGENET_IMAGES,
            START_HOURS,
        )
        for machine in machines
    )


def _estimate(type: str, price: float, speed: float, images: float, start: float) -> Estimate:
    hours = start + images / speed / 3600
    return Estimate(type, price, speed, hours, hours * price, price / 3600 / speed * 1e6)


def _ordered(estimates: Iterable[Estimate]) -> list[Estimate]:
    return sorted(estimates, key=lambda one: (one.usd_per_million_images, one.usd_per_hour))


def offered(estimates: Sequence[Estimate], zones: int) -> list[Estimate]:
    """The types to offer to AWS: those near the cheapest per image, and at least as many as make LEAST_POOLS pools.

    AWS chooses among them by price per hour and by capacity, and ignores their order. So only types that cost little
    more per image are offered.
    """
    limit = MOST_TIMES_THE_CHEAPEST * estimates[0].usd_per_million_images
    enough = math.ceil(LEAST_POOLS / max(zones, 1))
    return [one for place, one in enumerate(estimates) if place < enough or one.usd_per_million_images <= limit]


def extras_usd_per_hour(disk_gib: int) -> float:
    """What a machine costs beside its own price: its root volume and its public address."""
    return disk_gib * DISK_USD_PER_GIB_MONTH / HOURS_PER_MONTH + ADDRESS_USD_PER_HOUR
