"""How far a training is, by what it leaves in the bucket: heartbeat, newest metrics, newest checkpoint, attempts.

It reads a few small objects, however long the run is. It knows their formats only from the trainer's contract.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from infra.operate.documents import Beat, Checkpoint, Measured, Shape, parse_measured, segment_steps
from infra.operate.runs import ExplainedBucket, ListedObject, read_attempts
from infra.run.values import MOST
from trainer.contract import HEAD_FILE, Lease, UserError, checkpoint_key, metrics_key, run_key

SEGMENT_BYTES = 64 << 20  # of metrics, at most
ATTEMPTS_SHOWN = 50  # more are not read
T = TypeVar("T")


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


def read_progress(bucket: ExplainedBucket, run_id: str) -> Progress:
    skipped: list[str] = []

    def read(key: str, parse: Callable[[dict[str, Any]], T]) -> T | None:
        try:
            return parse(found) if key and (found := bucket.read_json(key)) else None
        except UserError:
            raise
        except ValueError as error:
            skipped.append(f"{key}, which no machine of ours writes: {error}")
            return None

    with ThreadPoolExecutor(8) as pool:
        config = pool.submit(read, run_key(run_id, "config.json"), Shape.from_json)
        checkpoint = pool.submit(lambda: read(newest_key(bucket, run_id), Checkpoint.from_json))
        attempts = pool.submit(read_attempts, bucket, run_id, ATTEMPTS_SHOWN)
        beat = next((o for o in bucket.list(run_key(run_id, "heartbeat.json"))), None)
        heartbeat = read(run_key(run_id, "heartbeat.json"), Beat.from_json) if beat else None
        segments = list_segments(bucket, run_id, heartbeat.attempt if heartbeat else 0)
        validated = found.validated if (found := checkpoint.result()) else 0
        wanted = {o.key for o in segments[-2:]} | {o.key for o in segments if covers(o.key, validated)}
        bodies = {key: pool.submit(bucket.read, key, SEGMENT_BYTES) for key in sorted(wanted)}
        rows = [row for key, body in bodies.items() for row in parse_rows(key, body.result(), skipped)]
    newest, shape = newest_of(rows), config.result() or Shape()
    epoch = newest.get("train/epoch")
    per_epoch = round(min(newest["step"] / epoch, MOST)) if epoch else 0
    top1s = [newest[name] for name in ("val/top1", "val_ema/top1", "val_swa/top1") if name in newest]
    ledger = attempts.result()
    return Progress(
        heartbeat=heartbeat,
        heartbeat_at=beat.modified.timestamp() if beat else 0.0,
        step=step_of(heartbeat, found),
        total_steps=round(per_epoch * shape.epochs),
        images_per_second=newest.get("speed/images_per_second", 0.0),
        global_batch_size=shape.global_batch_size,
        train_top1=newest.get("train/top1"),
        val_top1=max(top1s, default=None),
        checkpoint=found,
        attempts=tuple(ledger),
        skipped=(*skipped, *(one["problem"] for one in ledger if "problem" in one)),
    )


def step_of(heartbeat: Beat | None, checkpoint: Checkpoint | None) -> int:
    """Where the run is. A checkpoint of a later attempt than the heartbeat's may lie before it: after a rewind."""
    beat = heartbeat or Beat()
    if checkpoint is None:
        return beat.step
    return checkpoint.step if checkpoint.attempt > beat.attempt else max(beat.step, checkpoint.step)


def list_segments(bucket: ExplainedBucket, run_id: str, attempt: int) -> list[ListedObject]:
    """The metrics segments of an attempt, in order. They are called `<first step>-<last step>.jsonl`."""
    found = bucket.list(metrics_key(run_id, attempt, "")) if attempt else ()
    return [o for o in found if segment_steps(o.key) != (0, 0)]


def covers(key: str, step: int) -> bool:
    """Whether a segment has the rows of a step."""
    first, last = segment_steps(key)
    return step > 0 and first <= step <= last


def parse_rows(key: str, body: bytes | None, skipped: list[str]) -> Iterator[Measured]:
    """The rows of a segment. Adds to `skipped` if there are lines that no trainer writes."""
    odd: list[str] = []
    for line in (body or b"").splitlines():
        try:
            yield parse_measured(line)
        except ValueError as error:
            odd.append(str(error))
    if odd:
        skipped.append(f"{len(odd)} lines of {key}, which no machine of ours writes: {odd[0]}")


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
