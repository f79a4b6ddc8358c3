"""What is wrong with a run, from its newest rows of metrics and its newest samples: pure functions, no clock, no I/O.

`Course` is what the rules keep of the rows. A rule looks at one thing and returns an Observation or None. How often
something is told is not decided here. Rules of rows measure time by the rows' own clock, rules of samples by the
monotonic clock of whoever took them.
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
STEPS_KEPT, LOOKS_KEPT, LOOKS_SECONDS = 220, 10_000, 600.0
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


@dataclass(frozen=True)
class Course:
    """What the rules of rows know of an attempt so far, the oldest first."""

    steps: tuple[Row, ...] = ()  # as many as a jump of the loss is judged by
    looks: tuple[Row, ...] = ()  # the last step of each look, starts and validations, of the last ten minutes
    begin: int | None = None  # the first step

    def plus(self, rows: Sequence[Row]) -> Course:
        """Together with these rows, which come after."""
        if not rows:
            return self
        since = rows[-1]["time"] - LOOKS_SECONDS
        looks = [row for row in (*self.looks, *filter(ends_look, rows)) if row["time"] >= since]
        steps = [*self.steps, *(row for row in rows if "train/loss" in row)]
        begin = rows[0]["step"] if self.begin is None else self.begin
        return Course(tuple(steps[-STEPS_KEPT:]), tuple(looks[-LOOKS_KEPT:]), begin)


def is_validation(row: Row) -> bool:
    return any(name.startswith("val") for name in row)


def ends_look(row: Row) -> bool:
    """Whether this is more than a step inside a look."""
    return "checkpoint/lag_seconds" in row or "event" in row or is_validation(row)


def judge_rows(
    before: Course, rows: Sequence[Row], surroundings: Surroundings, newest: Moment | None
) -> Iterator[Observation]:
    """What the new rows of an attempt say, the oldest first, after what came before them."""
    now = before.plus(rows)
    for found in (
        starved(now.looks, surroundings, newest), loss_jump(before.steps, rows), not_finite(rows), scale_fell(now),
        store_stalled(rows),
    ):  # fmt: skip
        if found is not None:
            yield found


def judge_samples(samples: Sequence[Moment]) -> Iterator[Observation]:
    """What the samples of this attempt say, the oldest first."""
    for rule in SAMPLE_RULES:
        if samples and (found := rule(samples)) is not None:
            yield found


def starved(looks: Sequence[Row], surroundings: Surroundings, newest: Moment | None) -> Observation | None:
    """Training waits for data. Starts, validations and compilations do not count."""
    share = data_wait_of_minute(looks)
    if share is None or share < (STARVED_SHARE if surroundings.has_gpu else STARVED_SHARE_OF_CPU):
        return None
    said = f"data wait {100 * share:.0f} % over the last minute of training: "
    busy = newest.values.get("machine/cpu_fraction", 0.0) if newest is not None else 0.0
    if not surroundings.has_gpu:
        said += f"decoding and training share {surroundings.cores} cores, which are the limit; more cores, or a GPU"
    elif busy >= BUSY_SHARE:
        said += f"the loader is the limit, and all {surroundings.cores} vCPU are busy; a type with more vCPU"
    else:
        said += "the loader is the limit; more --data.workers or a type with more vCPU"
    return Observation("starved", "warning", said)


def data_wait_of_minute(looks: Sequence[Row]) -> float | None:
    """The share of the last minute of training that was spent waiting for data; None if there is less of it.

    A warm-up has no speed, and does not count. Nor does a validation.
    """
    total, waited = 0.0, 0.0
    for older, newer in reversed(list(pairwise(looks))):
        seconds = newer["time"] - older["time"]
        if seconds < 0:  # a clock that jumped back
            return None
        if is_validation(older):  # which lies between the two: the steps alone count, as they usually take
            seconds = min(seconds, (newer["step"] - older["step"]) * newer.get("speed/step_seconds_p50", 0.0))
        if "speed/data_wait_fraction" in newer and "event" not in older:
            total, waited = total + seconds, waited + seconds * newer["speed/data_wait_fraction"]
        if total >= MINUTE:
            return float(waited / total)
    return None


def loss_jump(before: Sequence[Row], rows: Sequence[Row]) -> Observation | None:
    """The loss of some of the last steps is far above that of the steps before. Judged at every 20th new step."""
    steps = [*before, *(row for row in rows if "train/loss" in row)]
    ends = range(len(steps), len(before), -JUMP_STEPS)
    return next(
        (found for end in reversed(ends) if (found := loss_jump_at(steps[max(0, end - STEPS_KEPT) : end]))), None
    )


def loss_jump_at(steps: Sequence[Row]) -> Observation | None:
    """The same, of the last of these steps."""
    losses = [row["train/loss"] for row in steps]
    before, after = losses[:-JUMP_STEPS], losses[-JUMP_STEPS:]
    if len(before) < STEPS_BEFORE_JUMP:
        return None
    first, was, third = quantiles(before, n=4, method="inclusive")
    now = median(after)
    if not now - was > max(LEAST_JUMP, 0.3 * abs(was), 5 * (third - first)):
        return None
    return Observation(
        "loss-jump", "warning",
        f"the loss has jumped from {was:.3f} to {now:.3f} by step {steps[-1]['step']}: if it does not come down, go "
        'back to an older step (make checkpoints ARGS="rewind STEP") with a lower --optim.peak-lr',
    )  # fmt: skip


def not_finite(rows: Sequence[Row]) -> Observation | None:
    """The loss of a validation is not finite."""
    for row in filter(is_validation, rows):
        for name, value in row.items():
            if name.startswith("val") and name.endswith("/loss") and not math.isfinite(value):
                said = f"{name} of step {row['step']} is {value}: it should be finite"
                return Observation("not-finite", "warning", said)
    return None


def scale_fell(course: Course) -> Observation | None:
    """Gradients under fp16 are not finite, step after step."""
    since = (course.begin or 0) + SETTLED_STEPS
    known = [(row["step"], row["train/loss_scale"]) for row in course.looks if "train/loss_scale" in row]
    scales = [(step, scale) for step, scale in known if step >= since]
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
    lag = max((row.get("checkpoint/lag_seconds", 0.0) for row in rows), default=0.0)
    if lag < STALLED_SECONDS:
        return None
    return Observation(
        "store-stalled", "warning",
        f"a checkpoint takes {show_duration(lag)} to reach the store, or has not reached it yet: so much work would be "
        "lost with this machine; the uploader goes on trying",
    )  # fmt: skip


def of_training(samples: Sequence[Moment], seconds: float) -> list[Moment]:
    """The samples of the last seconds of training; [] if there were fewer, or the newest is of another phase."""
    if samples[-1].phase != Phase.TRAINING:
        return []
    found, total = [samples[-1]], 0.0
    for older, newer in reversed(list(pairwise(samples))):
        if older.phase == newer.phase == Phase.TRAINING:
            total += newer.at - older.at
        if older.phase == Phase.TRAINING:
            found.append(older)
        if total >= seconds:
            return found if len(found) >= SHORTEST_SERIES else []
    return []


def throttled(samples: Sequence[Moment]) -> Observation | None:
    """The GPU has slowed itself down in most samples of a minute. A power limit that is reached is no fault."""
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
