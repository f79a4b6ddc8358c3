"""How far a training is, by what it leaves in the bucket: heartbeat, newest metrics, newest checkpoint, attempts.

It reads a few small objects, however long the run is. It knows their formats only from the trainer's contract.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from infra.operate.documents import Beat, Checkpoint, Measured, Result, Shape
from infra.operate.runs import ExplainedBucket, parse_object_or_nothing, read_attempts
from infra.operate.tails import NEWEST, KeptRows, read_metrics_tail, read_samples_tail
from infra.run.values import MOST
from trainer.contract import HEAD_FILE, Lease, checkpoint_key, run_key

ATTEMPTS_SHOWN = 50  # more are not read
MEAN_SECONDS = 60.0  # over which the wait for data is a mean
T = TypeVar("T")
Curve = tuple[tuple[float, float], ...]  # Unix seconds and value, in order


@dataclass(frozen=True, kw_only=True)
class Recent:
    """What was measured in the newest segments, and the newest sample of the machine."""

    loss: Curve = ()
    speed: Curve = ()  # images/s
    data_wait: Curve = ()  # the share of the time in which the GPU waits for images
    utilization: Curve = ()  # of the GPUs, from 0 to 1
    sample: Measured = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Sequence[Measured], samples: Sequence[Measured]) -> Recent:
        return cls(
            loss=curve(rows, "train/loss"), speed=curve(rows, "speed/images_per_second"),
            data_wait=curve(rows, "speed/data_wait_fraction"), utilization=curve(samples, "gpu/utilization"),
            sample=samples[-1] if samples else {},
        )  # fmt: skip

    @property
    def data_wait_mean(self) -> float | None:
        """The wait for data over the last minute that was measured. None if none was."""
        last = [value for at, value in self.data_wait if at >= self.data_wait[-1][0] - MEAN_SECONDS]
        return sum(last) / len(last) if last else None


def curve(rows: Iterable[Measured], name: str) -> Curve:
    return tuple((row["time"], row[name]) for row in rows if name in row and "time" in row)


@dataclass
class KeptTails:
    """What was read of a run before. Whoever watches it keeps this, and reads no segment twice."""

    metrics: KeptRows = field(default_factory=KeptRows)
    samples: KeptRows = field(default_factory=KeptRows)

    def problems(self) -> list[str]:
        return [problem for one in (self.metrics, self.samples) for problem in one.problems.values() if problem]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a training is. Times are Unix seconds."""

    heartbeat: Beat | None  # None before the first
    heartbeat_at: float  # when S3 got it
    step: int
    total_steps: int  # 0: not known yet
    images_per_second: float  # 0: not known yet
    global_batch_size: int
    train_top1: float | None
    val_top1: float | None  # of the last validation, the best one of the model and its averages
    checkpoint: Checkpoint | None
    best_top1: float | None  # in validation, as the result or the newest checkpoint tells
    attempts: tuple[dict[str, Any], ...]  # the ledger, oldest first
    recent: Recent = Recent()
    skipped: tuple[str, ...] = ()  # what no machine of ours writes

    @property
    def phase(self) -> str | None:
        """The phase in the newest heartbeat."""
        return self.heartbeat.phase if self.heartbeat else None

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the end at the present speed. None if the speed or the end is not known."""
        if not self.total_steps or not self.images_per_second:
            return None
        return min(max(0, self.total_steps - self.step) * self.global_batch_size / self.images_per_second, MOST)


NO_PROGRESS = Progress(
    heartbeat=None, heartbeat_at=0.0, step=0, total_steps=0, images_per_second=0.0, global_batch_size=0,
    train_top1=None, val_top1=None, checkpoint=None, best_top1=None, attempts=(),
)  # fmt: skip


def read_progress(bucket: ExplainedBucket, run_id: str, kept: KeptTails | None = None) -> Progress:
    """Whoever reads again and again passes `kept`, which has the segments that were read before."""
    skipped, kept = list[str](), kept or KeptTails()
    with ThreadPoolExecutor(8) as pool:
        config = pool.submit(read_document, bucket, run_key(run_id, "config.json"), Shape.from_json, skipped)
        checkpoint = pool.submit(read_checkpoint, bucket, run_id, skipped)
        attempts = pool.submit(read_attempts, bucket, run_id, ATTEMPTS_SHOWN)
        beat, heartbeat_at = read_heartbeat(bucket, run_id, skipped)
        samples = pool.submit(
            lambda: read_samples_tail(
                bucket, run_id, beat.attempt if beat else 0, age_of(attempts.result(), beat, heartbeat_at), kept.samples
            )
        )
        found = checkpoint.result()
        newest, rows = read_measured(bucket, run_id, beat, found, kept.metrics)
        measured, ledger, shape = samples.result(), attempts.result(), config.result() or Shape()
    progress = progress_of(beat, heartbeat_at, found, shape, newest)
    problems = (*skipped, *kept.problems(), *(one["problem"] for one in ledger if "problem" in one))
    return replace(progress, attempts=tuple(ledger), recent=Recent.of(rows, measured), skipped=problems)


def age_of(attempts: Iterable[dict[str, Any]], beat: Beat | None, heartbeat_at: float) -> float:
    """The seconds from an attempt's start to its newest heartbeat; 0 if nobody wrote its start down."""
    started = [one.get("started", 0.0) for one in attempts if beat and one["attempt"] == beat.attempt]
    return max(0.0, heartbeat_at - started[0]) if started and started[0] else 0.0


def read_headline(bucket: ExplainedBucket, run_id: str) -> Progress:
    """Step and accuracy of one run of many, with few requests: no ledger, no curve, nothing of its machine."""
    skipped = list[str]()
    beat, heartbeat_at = read_heartbeat(bucket, run_id, skipped)
    found = read_checkpoint(bucket, run_id, skipped)
    if found and found.total_steps:
        known = progress_of(beat, heartbeat_at, found, Shape(), {})
        return replace(known, total_steps=found.total_steps, skipped=tuple(skipped))
    shape = read_document(bucket, run_key(run_id, "config.json"), Shape.from_json, skipped) or Shape()
    newest, _ = read_measured(bucket, run_id, beat, found, KeptRows(), count=2)
    return replace(progress_of(beat, heartbeat_at, found, shape, newest), skipped=tuple(skipped))


def read_finished(bucket: ExplainedBucket, run_id: str, repeated: Result | None) -> Progress:
    """As `read_headline`, for a finished run: its result says it all, which `done.json` may have repeated."""
    result = repeated or read_document(bucket, run_key(run_id, "result.json"), Result.from_json, [])
    if result is None:  # a preparation, or what no machine of ours writes
        return read_headline(bucket, run_id)
    return replace(NO_PROGRESS, step=result.steps, total_steps=result.total_steps, best_top1=result.top1)


def read_heartbeat(bucket: ExplainedBucket, run_id: str, skipped: list[str]) -> tuple[Beat | None, float]:
    """The newest heartbeat, and when S3 got it: 0 before the first."""
    key = run_key(run_id, "heartbeat.json")
    stored = bucket.get(key)
    found = parse_object_or_nothing(stored.body) if stored else {}
    beat = parse_document(key, found, Beat.from_json, skipped) if found else None
    if beat and (odd := beat.observed.problem):
        skipped.append(f"{key}, of which no machine of ours writes this: {odd}")
    return beat, stored.modified.timestamp() if stored else 0.0


def read_measured(
    bucket: ExplainedBucket, run_id: str, beat: Beat | None, checkpoint: Checkpoint | None, kept: KeptRows,
    count: int = NEWEST,
) -> tuple[Measured, list[Measured]]:  # fmt: skip
    """The newest value of each metric, and the rows of the newest `count` segments, or more that are kept."""
    attempt, validated = beat.attempt if beat else 0, checkpoint.validated if checkpoint else 0
    segments, keys = read_metrics_tail(bucket, run_id, attempt, step_of(beat, checkpoint), validated, kept, count)
    return newest_of(row for key in keys for row in kept.rows[key]), kept.newest(segments)


def progress_of(
    beat: Beat | None, heartbeat_at: float, checkpoint: Checkpoint | None, shape: Shape, newest: Measured
) -> Progress:
    epoch = newest.get("train/epoch")
    per_epoch = round(min(newest["step"] / epoch, MOST)) if epoch else 0
    top1s = [newest[name] for name in ("val/top1", "val_ema/top1", "val_swa/top1") if name in newest]
    return Progress(
        heartbeat=beat, heartbeat_at=heartbeat_at, step=step_of(beat, checkpoint),
        total_steps=round(per_epoch * shape.epochs), images_per_second=newest.get("speed/images_per_second", 0.0),
        global_batch_size=shape.global_batch_size, train_top1=newest.get("train/top1"),
        val_top1=max(top1s, default=None), checkpoint=checkpoint,
        best_top1=checkpoint.best_top1 if checkpoint else None, attempts=(),
    )  # fmt: skip


def read_document(
    bucket: ExplainedBucket, key: str, parse: Callable[[dict[str, Any]], T], skipped: list[str]
) -> T | None:
    """What is in a file of JSON. None if there is none, or if no machine of ours wrote it: `skipped` then says so."""
    return parse_document(key, found, parse, skipped) if key and (found := bucket.read_json(key)) else None


def parse_document(
    key: str, value: dict[str, Any], parse: Callable[[dict[str, Any]], T], skipped: list[str]
) -> T | None:
    try:
        return parse(value)
    except ValueError as error:
        skipped.append(f"{key}, which no machine of ours writes: {error}")
        return None


def read_checkpoint(bucket: ExplainedBucket, run_id: str, skipped: list[str]) -> Checkpoint | None:
    """The newest checkpoint that HEAD.json names."""
    return read_document(bucket, newest_key(bucket, run_id), Checkpoint.from_json, skipped)


def step_of(heartbeat: Beat | None, checkpoint: Checkpoint | None) -> int:
    """Where the run is. A checkpoint of a later attempt than the heartbeat's may lie before it: after a rewind."""
    beat = heartbeat or Beat()
    if checkpoint is None:
        return beat.step
    return checkpoint.step if checkpoint.attempt > beat.attempt else max(beat.step, checkpoint.step)


def newest_of(rows: Iterable[Measured]) -> Measured:
    """The newest value of each metric, and the step of the newest training row."""
    values: Measured = {}
    for row in sorted(rows, key=lambda row: row["step"]):
        values |= row if "train/epoch" in row else {k: v for k, v in row.items() if k != "step"}
    return values


def newest_key(bucket: ExplainedBucket, run_id: str) -> str:
    """The manifest of the newest checkpoint that HEAD.json names; "" if it names none."""
    body = bucket.read(checkpoint_key(run_id, HEAD_FILE))
    with suppress(ValueError):  # of another version; the trainer will say so
        if body and (newest := Lease.from_json(body).of_run(run_id).newest):
            return newest
    return ""
