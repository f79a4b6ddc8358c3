"""How far a training is, by what it leaves in the bucket: heartbeat, newest metrics, newest checkpoint, attempts.

It reads a few small objects, however long the run is. It knows their formats only from the trainer's contract.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from infra.operate.runs import ExplainedBucket, ListedObject
from trainer.contract import HEAD_FILE, Lease, checkpoint_key, metrics_key, run_key

SEGMENT_BYTES = 64 << 20  # of metrics, at most
ATTEMPTS_SHOWN = 50  # more are counted, not read


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    step: int
    attempt: int
    time: float
    best_top1: float | None
    best_step: int
    validated: int  # the step of the last validation


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a training is. Times are Unix seconds."""

    heartbeat: dict[str, Any]  # empty before the first
    heartbeat_at: float  # when S3 got it
    step: int
    total_steps: int  # 0: not known yet
    images_per_second: float  # 0: not known yet
    global_batch_size: int
    train_top1: float | None
    val_top1: float | None  # of the last validation, the better one of the model and its average
    checkpoint: Checkpoint | None
    attempts: tuple[dict[str, Any], ...]  # the ledger, oldest first

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the end at the present speed. None if the speed or the end is not known."""
        if not self.total_steps or not self.images_per_second:
            return None
        return max(0, self.total_steps - self.step) * self.global_batch_size / self.images_per_second


NO_PROGRESS = Progress(
    heartbeat={}, heartbeat_at=0.0, step=0, total_steps=0, images_per_second=0.0, global_batch_size=0,
    train_top1=None, val_top1=None, checkpoint=None, attempts=(),
)  # fmt: skip


def read_progress(bucket: ExplainedBucket, run_id: str) -> Progress:
    def json_of(file: str) -> dict[str, Any]:
        return bucket.read_json(run_key(run_id, file))

    with ThreadPoolExecutor(8) as pool:
        config, checkpoint = pool.submit(json_of, "config.json"), pool.submit(read_checkpoint, bucket, run_id)
        attempts = pool.submit(read_attempts, bucket, run_id)
        beat = next((o for o in bucket.list(run_key(run_id, "heartbeat.json"))), None)
        heartbeat = json_of("heartbeat.json") if beat else {}
        segments = list_segments(bucket, run_id, int(heartbeat.get("attempt", 0)))
        validated = found.validated if (found := checkpoint.result()) else 0
        wanted = {o.key for o in segments[-2:]} | {o.key for o in segments if covers(o.key, validated)}
        rows = [
            row
            for body in pool.map(lambda key: bucket.read(key, SEGMENT_BYTES), sorted(wanted))
            for row in parse_rows(body)
        ]
    newest = newest_of(rows)
    epoch, epochs = newest.get("train/epoch"), config.result().get("epochs", 0)
    per_epoch = round(newest["step"] / epoch) if epoch else 0
    top1s = [newest[name] for name in ("val/top1", "val_ema/top1") if name in newest]
    return Progress(
        heartbeat=heartbeat,
        heartbeat_at=beat.modified.timestamp() if beat else 0.0,
        step=step_of(heartbeat, found),
        total_steps=round(per_epoch * epochs),
        images_per_second=newest.get("speed/images_per_second", 0.0),
        global_batch_size=int(config.result().get("global_batch_size", 0)),
        train_top1=newest.get("train/top1"),
        val_top1=max(top1s, default=None),
        checkpoint=found,
        attempts=tuple(attempts.result()),
    )


def step_of(heartbeat: dict[str, Any], checkpoint: Checkpoint | None) -> int:
    """Where the run is. A checkpoint of a later attempt than the heartbeat's may lie before it: after a rewind."""
    beat = int(heartbeat.get("step", 0))
    if checkpoint is None:
        return beat
    is_later = checkpoint.attempt > int(heartbeat.get("attempt", 0))
    return checkpoint.step if is_later else max(beat, checkpoint.step)


def list_segments(bucket: ExplainedBucket, run_id: str, attempt: int) -> list[ListedObject]:
    """The metrics segments of an attempt, in order. They are called `<first step>-<last step>.jsonl`."""
    return [o for o in bucket.list(metrics_key(run_id, attempt, "")) if o.key.endswith(".jsonl")] if attempt else []


def covers(key: str, step: int) -> bool:
    """Whether a segment has the rows of a step."""
    first, _, last = key.rsplit("/", 1)[1].removesuffix(".jsonl").partition("-")
    return step > 0 and int(first) <= step <= int(last.partition("_")[0])


def parse_rows(body: bytes | None) -> Iterable[dict[str, Any]]:
    return (json.loads(line) for line in (body or b"").splitlines())


def newest_of(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The newest value of each metric, and the step of the newest training row."""
    values: dict[str, Any] = {}
    for row in sorted(rows, key=lambda row: row["step"]):
        if "event" not in row:
            values |= row if "train/epoch" in row else {k: v for k, v in row.items() if k != "step"}
    return values


def read_checkpoint(bucket: ExplainedBucket, run_id: str) -> Checkpoint | None:
    """The newest checkpoint that HEAD.json names. None if there is none."""
    body = bucket.read(checkpoint_key(run_id, HEAD_FILE))
    try:
        newest = Lease.from_json(body).newest if body else ""
    except ValueError:  # of another version; the trainer will say so
        newest = ""
    manifest = bucket.read_json(newest) if newest else {}
    if not manifest:
        return None
    counters = manifest.get("counters", {})
    best = counters.get("best") or {}
    return Checkpoint(
        step=int(manifest["step"]), attempt=int(manifest.get("attempt", 0)), time=float(manifest["time"]),
        best_top1=best.get("top1") if best.get("step") else None,  # step 0: before the first validation
        best_step=int(best.get("step", 0)), validated=int(counters.get("validated", 0)),
    )  # fmt: skip


def read_attempts(bucket: ExplainedBucket, run_id: str) -> list[dict[str, Any]]:
    """What each attempt wrote at its start and its end. An attempt that was killed wrote no end."""
    objects = [o for o in bucket.list(run_key(run_id, "attempts/")) if number(o.key)]
    with ThreadPoolExecutor(8) as pool:
        newest = sorted(objects, key=lambda o: number(o.key))[-ATTEMPTS_SHOWN:]
        bodies = pool.map(lambda o: bucket.read_json(o.key), newest)
        return [{"attempt": number(o.key)} | body for o, body in zip(newest, bodies, strict=True)]


def number(key: str) -> int:
    name = key.rsplit("/", 1)[1].removesuffix(".json")
    return int(name) if name.isdecimal() else 0
