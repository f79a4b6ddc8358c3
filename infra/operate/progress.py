"""How far a training is, by what it leaves in the bucket: heartbeat, newest metrics, newest checkpoint, attempts.

It reads a few small objects, however long the run is. It knows their formats only from the trainer's contract.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from infra.operate.documents import Beat, Checkpoint, Measured, Shape
from infra.operate.runs import ExplainedBucket, read_attempts
from infra.operate.tails import KeptRows, read_metrics_tail, read_samples_tail
from infra.run.values import MOST
from trainer.contract import HEAD_FILE, Lease, UserError, checkpoint_key, run_key

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
    train_top1=None, val_top1=None, checkpoint=None, attempts=(),
)  # fmt: skip


def read_progress(bucket: ExplainedBucket, run_id: str, kept: KeptTails | None = None) -> Progress:
    """Whoever reads again and again passes `kept`, which has the segments that were read before."""
    skipped, kept = list[str](), kept or KeptTails()
    with ThreadPoolExecutor(8) as pool:
        config = pool.submit(read_document, bucket, run_key(run_id, "config.json"), Shape.from_json, skipped)
        checkpoint = pool.submit(read_checkpoint, bucket, run_id, skipped)
        attempts = pool.submit(read_attempts, bucket, run_id, ATTEMPTS_SHOWN)
        beat = next((o for o in bucket.list(run_key(run_id, "heartbeat.json"))), None)
        heartbeat = read_document(bucket, run_key(run_id, "heartbeat.json"), Beat.from_json, skipped) if beat else None
        attempt = heartbeat.attempt if heartbeat else 0
        samples = pool.submit(read_samples_tail, bucket, run_id, attempt, kept.samples)
        found = checkpoint.result()
        step, validated = step_of(heartbeat, found), found.validated if found else 0
        segments, keys = read_metrics_tail(bucket, run_id, attempt, step, validated, kept.metrics)
        measured, ledger, shape = samples.result(), attempts.result(), config.result() or Shape()
    newest = newest_of(row for key in keys for row in kept.metrics.rows[key])
    top1s = [newest[name] for name in ("val/top1", "val_ema/top1", "val_swa/top1") if name in newest]
    if heartbeat and (odd := heartbeat.observed.problem):
        skipped.append(f"{run_key(run_id, 'heartbeat.json')}, of which no machine of ours writes this: {odd}")
    return Progress(
        heartbeat=heartbeat, heartbeat_at=beat.modified.timestamp() if beat else 0.0, step=step,
        total_steps=total_of(newest, shape), images_per_second=newest.get("speed/images_per_second", 0.0),
        global_batch_size=shape.global_batch_size, train_top1=newest.get("train/top1"),
        val_top1=max(top1s, default=None), checkpoint=found, attempts=tuple(ledger),
        recent=Recent.of(kept.metrics.newest(segments), measured),
        skipped=(*skipped, *kept.problems(), *(one["problem"] for one in ledger if "problem" in one)),
    )  # fmt: skip


def read_document(
    bucket: ExplainedBucket, key: str, parse: Callable[[dict[str, Any]], T], skipped: list[str]
) -> T | None:
    """What is in a file of JSON. None if there is none, or if no machine of ours wrote it: `skipped` then says so."""
    try:
        return parse(found) if key and (found := bucket.read_json(key)) else None
    except UserError:
        raise
    except ValueError as error:
        skipped.append(f"{key}, which no machine of ours writes: {error}")
        return None


def read_checkpoint(bucket: ExplainedBucket, run_id: str, skipped: list[str]) -> Checkpoint | None:
    """The newest checkpoint that HEAD.json names."""
    return read_document(bucket, newest_key(bucket, run_id), Checkpoint.from_json, skipped)


def total_of(newest: Measured, shape: Shape) -> int:
    """The steps of the whole run; 0 if they are not known yet."""
    epoch = newest.get("train/epoch")
    per_epoch = round(min(newest["step"] / epoch, MOST)) if epoch else 0
    return round(per_epoch * shape.epochs)


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
