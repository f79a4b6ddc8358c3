"""What machines have, what they cost and how fast they probably train: tables with dates and sources.

This project measured none of these figures on AWS. Today's prices (`prices`) come first; the table is for when AWS does
not answer. `speeds` and `estimate` compute with them. There is no I/O here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from trainer.contract import UserError

PRICES_SOURCE = "AWS Pricing API for us-east-1 on 2026-01-19, as published in aws/karpenter-provider-aws"
# The middle one of the zones, where AWS cannot be asked: SkyPilot's catalog v9, aws/vms.csv at 2c3d7ea (2026), and for
# g7.2xlarge dstack's pull request 4063 of 2026-07-23. One region, so that the rows can be compared.
SPOT_REGION = "us-east-2"
SPOT_SOURCE = f"SkyPilot's catalog v9 and dstack #4063 for {SPOT_REGION}, 2026"
SPOT_PRICES: Mapping[str, float] = MappingProxyType(
    {
        "g5.xlarge": 0.37,
        "g6.xlarge": 0.2148,
        "g6.4xlarge": 0.4647,
        "g6e.xlarge": 0.541,
        "g7.2xlarge": 0.3963,
        "g7e.2xlarge": 0.8843,
        "g7e.4xlarge": 0.9952,
    }
)
IMAGENET_SOURCE_GB = 150  # what `prepare` downloads
LEAST_POOLS = 12  # types x zones: with fewer, spot capacity is often gone
DISK_USD_PER_GIB_MONTH = 0.08  # gp3, list price of us-east-1 (aws.amazon.com/ebs/pricing); `prices` asks the region's
ADDRESS_USD_PER_HOUR = 0.005  # a public IPv4 address, in all regions (AWS News Blog, 28 July 2023)
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
    "RTX PRO 4500": Gpu(31, _from_bandwidth(735), "derived from 735 GB/s, by AWS 2.45 times g6's"),
    "RTX PRO 6000": Gpu(95, _from_bandwidth(1597), "derived from 1,597 GB/s"),
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
    gigabits: float = 0.0  # a second, the baseline of its network; 0: nobody has looked
    gpus: int = 1  # of this kind, where there is one

    @property
    def all_gpus(self) -> str:
        return f"{self.gpus} {self.gpu}"


# vCPUs, memory and NVMe as `aws ec2 describe-instance-types` tells them. Baseline bandwidths of those with a GPU:
# aws/karpenter-provider-aws at 1d92708 (July 2026), which asked the same.
TYPES = {
    type.name: type
    for type in (
        InstanceType("g4dn.xlarge", 4, 16, "T4", 125, 0.526, 5),
        InstanceType("g4dn.2xlarge", 8, 32, "T4", 225, 0.752, 10),
        InstanceType("g4dn.4xlarge", 16, 64, "T4", 225, 1.204, 20),
        InstanceType("g5.xlarge", 4, 16, "A10G", 250, 1.006, 2.5),
        InstanceType("g5.2xlarge", 8, 32, "A10G", 450, 1.212, 5),
        InstanceType("g5.4xlarge", 16, 64, "A10G", 600, 1.624, 10),
        InstanceType("g5.8xlarge", 32, 128, "A10G", 900, 2.448, 25),
        InstanceType("g6.xlarge", 4, 16, "L4", 250, 0.8048, 2.5),
        InstanceType("g6.2xlarge", 8, 32, "L4", 450, 0.9776, 5),
        InstanceType("g6.4xlarge", 16, 64, "L4", 600, 1.3232, 10),
        InstanceType("g6.8xlarge", 32, 128, "L4", 900, 2.0144, 25),
        InstanceType("g6e.xlarge", 4, 32, "L40S", 250, 1.861, 2.5),
        InstanceType("g6e.2xlarge", 8, 64, "L40S", 450, 2.24208, 5),
        InstanceType("g6e.4xlarge", 16, 128, "L40S", 600, 3.00424, 20),
        InstanceType("g6e.8xlarge", 32, 256, "L40S", 900, 4.52856, 25),
        # dstack #4063. Nobody says here what local disk g7 has, so it counts as having none.
        InstanceType("g7.2xlarge", 8, 32, "RTX PRO 4500", 0, 2.52, 40),
        InstanceType("g7e.2xlarge", 8, 64, "RTX PRO 6000", 1900, 3.36312, 50),
        InstanceType("g7e.4xlarge", 16, 128, "RTX PRO 6000", 1900, 3.99816, 50),
        InstanceType("p5.4xlarge", 16, 256, "H100", 3800, 6.88, 100),
        # Several GPUs, which are joined by PCIe. p5.48xlarge is not here: its network is 32 cards, which all need EFA.
        InstanceType("g5.12xlarge", 48, 192, "A10G", 3800, 5.672, 40, gpus=4),
        InstanceType("g5.48xlarge", 192, 768, "A10G", 7600, 16.288, 100, gpus=8),
        InstanceType("g6.12xlarge", 48, 192, "L4", 3760, 4.6016, 40, gpus=4),
        InstanceType("g6.48xlarge", 192, 768, "L4", 7520, 13.3504, 100, gpus=8),
        InstanceType("g6e.12xlarge", 48, 384, "L40S", 3800, 10.49264, 100, gpus=4),
        InstanceType("g6e.48xlarge", 192, 1536, "L40S", 7600, 30.13118, 400, gpus=8),
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
