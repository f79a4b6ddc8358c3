"""How long a step takes on several GPUs and machines, and so the hours and dollars of a run there. There is no I/O.

A step is its micro-batches, the part of the exchange of gradients that the backward pass does not hide, and the wait
for the slowest process. docs/scaling.md explains each term, and says which of them were measured.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from infra.operate.planning.catalog import TYPES, InstanceType, gpu_types
from infra.operate.planning.estimate import START_SECONDS, DataSize, Estimate, data_of, estimate_alone, ordered
from infra.operate.planning.speeds import gpu_speed, loader_speed
from infra.operate.planning.work import Work

GRADIENT_BYTES = 4 * 25_557_032  # ResNet-50 in float32, which DistributedDataParallel exchanges once a step
LAST_BUCKET = 0.1  # of them, the first layers' : ready when the backward pass is over, so nothing hides them
BACKWARD = 2 / 3  # of a micro-batch's time: two of its three matrix products
HOST_SECONDS = 0.0185  # what one micro-batch costs the processor at least (benchmarks/results/step.json)
JITTER = 0.01  # standard deviation of a process's step over its mean. An assumption
COPY_BYTES_PER_SECOND = 5e9  # most that a machine copies from S3 to its disks. An assumption
FLAG_SECONDS = 0.0008  # the question of each step who wants to stop or save, where a step waits for it


@dataclass(frozen=True)
class Wire:
    """Bytes a second in one direction, and the seconds that a message takes at least."""

    bytes_per_second: float
    seconds: float


@dataclass(frozen=True)
class Server:
    """A type with one or several GPUs. `network` leads to other machines, `inside` to the other GPUs."""

    type: InstanceType  # its vCPUs and price are those of the whole machine
    network: Wire
    inside: Wire


def _network(gigabits: float, seconds: float) -> Wire:
    """Nine tenths of the stated rate are left for data."""
    return Wire(gigabits * 1e9 / 8 * 0.9, seconds)


TCP, EFA = 50e-6, 20e-6  # seconds of a message in a placement group. Assumptions
# PCIe 4.0 x16 through the processor gives NCCL about 10 GB/s, NVLink 4 about 350 GB/s. Assumptions
PCIE, NVLINK = Wire(10e9, 10e-6), Wire(350e9, 5e-6)


def _server(type: InstanceType) -> Server:
    """One that `launch` starts: without NVLink, and with TCP between machines."""
    return Server(type, _network(type.gigabits, TCP), PCIE)


# Prices on demand in us-east-1 and baseline bandwidths: aws/karpenter-provider-aws at 1d92708 (July 2026)
SERVERS: Mapping[str, Server] = MappingProxyType(
    {
        machine.type.name: machine
        for machine in (
            _server(TYPES["g5.xlarge"]),
            _server(TYPES["g7e.2xlarge"]),
            _server(TYPES["g5.48xlarge"]),
            # Nothing here launches it: EFA needs an interface on each of its 32 network cards.
            Server(InstanceType("p5.48xlarge", 192, 2048, "H100", 30400, 55.04, 3200, 8), _network(3200, EFA), NVLINK),
        )
    }
)


@dataclass(frozen=True)
class Prediction:
    """Of a run. `efficiency` is its speed over that of as many GPUs, each of which would train alone."""

    gpus: int
    machines: int
    batch: int
    images_per_second: float
    efficiency: float
    hours: float
    usd: float
    limit: str  # what takes the most time beside the micro-batches


def all_reduce_seconds(count: int, size: float, link: Wire) -> float:
    """The sum of `size` bytes over `count` processes, each of which has it in the end.

    A ring sends 2 (n - 1) / n of the bytes over each link. Its messages wait for each other 2 (n - 1) times, those of a
    tree 2 log2 n times: the smaller of the two counts, as NCCL chooses (NCCL 2.4's double binary trees).
    """
    if count == 1:
        return 0.0
    hops = min(2 * (count - 1), 2 * math.ceil(math.log2(count)))
    return 2 * (count - 1) / count * size / link.bytes_per_second + hops * link.seconds


def exchange_seconds(machine: Server, machines: int, size: float) -> float:
    """The all-reduce over all GPUs. One ring passes through all: the slowest link on its way decides."""
    link = machine.inside
    if machines > 1:
        slowest = min(machine.network.bytes_per_second, link.bytes_per_second if machine.type.gpus > 1 else math.inf)
        link = Wire(slowest, machine.network.seconds)
    return all_reduce_seconds(machines * machine.type.gpus, size, link)


def step_seconds(
    machine: Server, gpus: int, of_each: int, one: float, gradient_bytes: float = GRADIENT_BYTES
) -> tuple[float, str]:
    """Seconds of a step in which each process has `of_each` micro-batches of `one` second, if none waits for images.

    With it comes what takes the most time beside the micro-batches; "" for a single process.
    """
    if gpus == 1:
        return of_each * one, ""
    exchange = exchange_seconds(machine, -(-gpus // machine.type.gpus), gradient_bytes)
    terms = {
        "exchange": max(exchange - BACKWARD * one, LAST_BUCKET * exchange),
        "stragglers": JITTER * of_each * one * math.sqrt(2 * math.log(gpus)),
        "flags": FLAG_SECONDS,
    }
    return of_each * one + sum(terms.values()), max(terms, key=lambda name: terms[name])


def _stage_seconds(
    machine: Server, gpus: int, work: Work, pixels: int, batch: int, gradient_bytes: float
) -> tuple[float, str]:
    """Seconds of a step at this size of images, and what takes the most time beside the micro-batches."""
    micro = min(work.device_batch, -(-batch // gpus))
    of_each = -(-batch // (micro * gpus))
    rate = gpu_speed(machine.type.gpu, work, pixels).images_per_second
    one = max(micro / rate, HOST_SECONDS)
    trained, limit = step_seconds(machine, gpus, of_each, one, gradient_bytes)
    share = replace(machine.type, vcpus=machine.type.vcpus // machine.type.gpus)  # each process decodes for its own GPU
    if (fed := of_each * micro / loader_speed(share, work, pixels)) > trained:
        return fed, "loader"
    return trained, "host" if of_each * (one - micro / rate) > trained - of_each * one else limit


def predict_run(
    machine: Server, gpus: int, work: Work, batch: int, gradient_bytes: float = GRADIENT_BYTES
) -> Prediction:
    """A whole run: start, copying on every machine at the same time, and all steps. Validation is left out."""
    data = data_of(work)
    machines = -(-gpus // machine.type.gpus)
    seconds, alone, limits = 0.0, 0.0, dict[str, float]()
    for stage in work.stages:
        steps = stage.epochs * data.images.train / batch
        step, limit = _stage_seconds(machine, gpus, work, stage.pixels, batch, gradient_bytes)
        one, _ = _stage_seconds(machine, 1, work, stage.pixels, batch, gradient_bytes)
        seconds, alone = seconds + steps * step, alone + steps * one
        limits[limit] = limits.get(limit, 0.0) + steps * step
    start = START_SECONDS + data.copied_gb * 1e9 / min(machine.network.bytes_per_second, COPY_BYTES_PER_SECOND)
    images = sum(stage.epochs for stage in work.stages) * data.images.train
    hours = (start + seconds) / 3600
    return Prediction(
        gpus, machines, batch, images / seconds, alone / seconds / gpus, hours,
        hours * machines * machine.type.usd_per_hour, max(limits, key=lambda name: limits[name]),
    )  # fmt: skip


def estimate(
    work: Work, types: Collection[str], prices: Mapping[str, float], data: DataSize | None = None,
    extras_usd_per_hour: float = 0.0, nodes: int = 1,
) -> list[Estimate]:  # fmt: skip
    """An estimate for each type, for a run on so many machines of it. The cheapest image comes first.

    Raises UserError for a type that has no GPU.
    """
    data, extras = data or data_of(work), extras_usd_per_hour
    found = (estimate_alone(work, type, prices[type.name], data, extras) for type in gpu_types(types))
    return ordered(_together(one, work, nodes, extras) for one in found)


def _together(alone: Estimate, work: Work, nodes: int, extras: float) -> Estimate:
    """Training is as much faster as the model says. Every machine starts, copies and compiles at the same time."""
    machine = _server(TYPES[alone.type])
    if (gpus := nodes * machine.type.gpus) == 1:
        return alone
    efficiency = predict_run(machine, gpus, work, work.batch).efficiency
    speed, price = alone.images_per_second * gpus * efficiency, alone.usd_per_hour * nodes
    of_hours = replace(
        alone.of_hours, train=alone.of_hours.train / gpus / efficiency, validate=alone.of_hours.validate / gpus
    )
    return replace(
        alone, usd_per_hour=price, images_per_second=speed, hours=of_hours.total, of_hours=of_hours,
        usd=of_hours.total * (price + nodes * extras), usd_per_million_images=price / 3600 / speed * 1e6,
        efficiency=efficiency,
    )  # fmt: skip
