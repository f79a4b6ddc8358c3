"""What is wrong with a run, from its newest rows of metrics and its newest samples: pure functions, no clock, no I/O.

A rule looks at one thing and returns an Observation or None. How often something is told is not decided here. Rules of
rows measure time by the rows' own clock, rules of samples by the monotonic clock of whoever took them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median, quantiles

from trainer.contract import Phase
from trainer.telemetry.metrics import Row
from trainer.text import show_bytes, show_duration

MINUTE = 60.0
STARVED_SHARE = 0.10  # of the time that a GPU waits for data
STARVED_SHARE_OF_CPU = 0.30  # without a GPU, decoding and training share the cores: some waiting is no fault
BUSY_SHARE = 0.95  # of all cores
IDLE_SHARE, IDLE_SECONDS = 0.10, 300.0  # of a GPU while it trains
SHORTEST_SERIES = 4  # samples on which a rule is founded
SLOWDOWN_HOT = 0x20 | 0x40  # bits of NVML's clock event reasons: software and hardware thermal slowdown
SLOWDOWN_BRAKE = 0x08 | 0x80  # hardware slowdown, external power brake
STALLED_SECONDS = 120.0  # from a copy of the state to its commit
STILL_SECONDS = 300.0  # without any progress; on AWS the guard replaces the machine after 600
STILL_SECONDS_OF_COMPILER = 540.0
JUMP_STEPS, STEPS_BEFORE_JUMP = 20, 100
LEAST_JUMP = 0.5  # of the loss: smaller ones are noise
SETTLED_STEPS = 200  # in which fp16 may look for its scale
SCALE_FALL = 16.0  # four halvings, each for a step whose gradient was not finite
DISK_BYTES, DISK_SHARE = 2e9, 0.05  # both must be left


@dataclass(frozen=True)
class Observation:
    """What a person should know. `kind` is one of `trainer.alerts`."""

    kind: str
    level: str  # info, warning or error
    text: str


@dataclass(frozen=True)
class Moment:
    """What was measured at one moment, in monotonic seconds. The trainer has stood `still` for so many."""

    at: float
    phase: str
    step: int
    still: float
    values: Mapping[str, float]


@dataclass(frozen=True)
class Surroundings:
    """What a run has to itself."""

    has_gpu: bool
    cores: int


def judge_rows(rows: Sequence[Row], surroundings: Surroundings, newest: Moment | None) -> Iterator[Observation]:
    """What the rows of this attempt say, the oldest first. To be asked when new ones have come."""
    for found in (starved(rows, surroundings, newest), loss_jump(rows), not_finite(rows), store_stalled(rows)):
        if found is not None:
            yield found


def judge_samples(samples: Sequence[Moment]) -> Iterator[Observation]:
    """What the samples of this attempt say, the oldest first."""
    for rule in SAMPLE_RULES:
        if samples and (found := rule(samples)) is not None:
            yield found


def starved(rows: Sequence[Row], surroundings: Surroundings, newest: Moment | None) -> Observation | None:
    """Training waits for data. Not told of a minute in which there was a start, a validation or a compilation."""
    share = data_wait_of_minute(rows)
    if share is None or share < (STARVED_SHARE if surroundings.has_gpu else STARVED_SHARE_OF_CPU):
        return None
    said = f"data wait {100 * share:.0f} % over the last minute: "
    busy = newest.values.get("machine/cpu_fraction", 0.0) if newest is not None else 0.0
    if not surroundings.has_gpu:
        said += f"decoding and training share {surroundings.cores} cores, which are the limit; more cores, or a GPU"
    elif busy >= BUSY_SHARE:
        said += f"the loader is the limit, and all {surroundings.cores} vCPU are busy; a type with more vCPU"
    else:
        said += "the loader is the limit; more --data.workers or a type with more vCPU"
    return Observation("starved", "warning", said)


def data_wait_of_minute(rows: Sequence[Row]) -> float | None:
    """The share of the last minute that training waited for data; None unless it trained all the time."""
    looks: list[Row] = []
    for row in reversed(rows):
        if "event" in row or any(name.startswith("val") for name in row):
            return None
        if "checkpoint/lag_seconds" not in row:  # a step inside a look
            continue
        if "speed/data_wait_fraction" not in row:  # a warm-up
            return None
        looks.append(row)
        seconds = looks[0]["time"] - row["time"]
        if seconds >= MINUTE or seconds < 0:  # a clock that jumped back
            break
    else:
        return None
    spans = [(newer["time"] - older["time"], newer["speed/data_wait_fraction"]) for newer, older in pairwise(looks)]
    total = sum(seconds for seconds, _ in spans)
    if total < MINUTE or min(seconds for seconds, _ in spans) < 0:
        return None
    return float(sum(seconds * share for seconds, share in spans) / total)


def loss_jump(rows: Sequence[Row]) -> Observation | None:
    """The loss of the last steps is far above that of the steps before."""
    steps = [row for row in rows[-JUMP_STEPS - 2 * STEPS_BEFORE_JUMP :] if "train/loss" in row]
    before, after = steps[:-JUMP_STEPS], steps[-JUMP_STEPS:]
    if len(before) < STEPS_BEFORE_JUMP:
        return None
    first, _, third = quantiles((row["train/loss"] for row in before), n=4)
    was, now = median(row["train/loss"] for row in before), median(row["train/loss"] for row in after)
    if not now - was > max(LEAST_JUMP, 0.3 * abs(was), 5 * (third - first)):
        return None
    return Observation(
        "loss-jump", "warning",
        f"the loss has jumped from {was:.3f} to {now:.3f} by step {after[-1]['step']}: if it does not come down, go "
        'back to an older step (make checkpoints ARGS="rewind STEP") with a lower --optim.peak-lr',
    )  # fmt: skip


def not_finite(rows: Sequence[Row]) -> Observation | None:
    """Gradients under fp16 that are not finite, step after step; or a validation whose loss is not finite."""
    newest = rows[-1] if rows else {}
    for name, value in newest.items():
        if name.startswith("val") and name.endswith("/loss") and not math.isfinite(value):
            return Observation(
                "not-finite", "warning", f"{name} of step {newest['step']} is {value}: it should be finite"
            )
    scales = [(row["step"], row["train/loss_scale"]) for row in rows if "train/loss_scale" in row]
    scales = [(step, scale) for step, scale in scales if step >= rows[0]["step"] + SETTLED_STEPS]
    if not scales or scales[-1][1] * SCALE_FALL > (most := max(scale for _, scale in scales)):
        return None
    step, scale = scales[-1]
    return Observation(
        "not-finite", "warning",
        f"gradients under fp16 are not finite in many steps: the loss scale fell from {most:g} to {scale:g} by step "
        f"{step}; train in bf16 (--precision bf16), or lower --optim.peak-lr",
    )  # fmt: skip


def store_stalled(rows: Sequence[Row]) -> Observation | None:
    """A checkpoint waits too long for the store."""
    lag = next((row["checkpoint/lag_seconds"] for row in reversed(rows) if "checkpoint/lag_seconds" in row), 0.0)
    if lag < STALLED_SECONDS:
        return None
    return Observation(
        "store-stalled", "warning",
        f"a checkpoint takes {show_duration(lag)} to reach the store, or has not reached it yet: so much work would be "
        "lost with this machine; the uploader goes on trying",
    )  # fmt: skip


def of_training(samples: Sequence[Moment], seconds: float) -> list[Moment]:
    """The samples of the last seconds, if training went on all the time; else []."""
    recent = [sample for sample in samples if sample.at >= samples[-1].at - seconds]
    whole = len(recent) >= SHORTEST_SERIES and samples[0].at <= samples[-1].at - seconds
    return recent if whole and all(sample.phase == Phase.TRAINING for sample in recent) else []


def throttled(samples: Sequence[Moment]) -> Observation | None:
    """The GPU has slowed itself down in most samples of the last minute. A power limit that is reached is no fault."""
    recent = of_training(samples, MINUTE)
    masks = [int(sample.values.get("gpu/throttle_reasons", 0)) for sample in recent]
    if 2 * sum(bool(mask & (SLOWDOWN_HOT | SLOWDOWN_BRAKE)) for mask in masks) <= len(masks):
        return None
    if not any(mask & SLOWDOWN_HOT for mask in masks):
        said = "the GPU is slowed down by its power supply: the power or the cooling of this machine does not suffice"
        return Observation("throttled", "warning", said)
    hottest = max((sample.values.get("gpu/temperature_celsius", 0.0) for sample in recent), default=0.0)
    said = f"the GPU slows itself down, since it is too hot{f' ({hottest:.0f} °C)' if hottest else ''}: give it air, "
    return Observation("throttled", "warning", f"{said}or take another machine")


def idle_gpu(samples: Sequence[Moment]) -> Observation | None:
    """The GPU has had next to nothing to do while training went on."""
    recent = of_training(samples, IDLE_SECONDS)
    shares = [sample.values["gpu/utilization"] for sample in recent if "gpu/utilization" in sample.values]
    if len(shares) < SHORTEST_SERIES or fmean(shares) >= IDLE_SHARE:
        return None
    said = f"the GPU was busy {100 * fmean(shares):.0f} % of the last {IDLE_SECONDS / 60:.0f} minutes of training: "
    said += "look at the data wait, and try a larger --device-batch-size or a smaller machine"
    return Observation("idle-gpu", "warning", said)


def stands_still(samples: Sequence[Moment]) -> Observation | None:
    """The trainer has not moved for minutes, whatever it is at."""
    newest = samples[-1]
    if newest.still < (STILL_SECONDS_OF_COMPILER if newest.phase == Phase.COMPILING else STILL_SECONDS):
        return None
    since = f"for {show_duration(newest.still)}"
    if newest.phase == Phase.WAITING_FOR_STORE:
        return Observation("store-stalled", "error", f"the run has waited for the store {since}, at step {newest.step}")
    return Observation(
        "hung", "error",
        f"nothing has moved {since} ({newest.phase}, step {newest.step}): if that goes on, end it (Ctrl-C) and start "
        "it again, which continues from the newest checkpoint",
    )  # fmt: skip


def disk_full(samples: Sequence[Moment]) -> Observation | None:
    """The scratch disk is nearly full."""
    free = samples[-1].values.get("disk/scratch_free_bytes")
    used = samples[-1].values.get("disk/scratch_used_bytes", 0.0)
    if free is None or free >= DISK_BYTES or free >= DISK_SHARE * (free + used):
        return None
    said = f"the disk of the scratch folder has {show_bytes(free)} left: free some space"
    return Observation("disk-full", "warning", said)


SAMPLE_RULES: tuple[Callable[[Sequence[Moment]], Observation | None], ...] = (
    throttled,
    idle_gpu,
    stands_still,
    disk_full,
)
