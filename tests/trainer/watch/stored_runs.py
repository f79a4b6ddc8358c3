"""Runs as their files lie in a store, without a training. Each part may be left out or changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from trainer.contract import HEAD_FILE, Lease, attempt_key, checkpoint_key, manifest_key, metrics_key, run_key, seal
from trainer.store import ObjectStore

NOW = 1_800_000_000.0  # Unix seconds
BEGUN = NOW - 3600
CONFIG = {"recipe": "digits", "epochs": 10, "global_batch_size": 256}
SAMPLE = {
    "gpu/count": 1, "gpu/utilization": 0.87, "gpu/memory_used_bytes": 34.1e9, "gpu/memory_total_bytes": 80e9,
    "gpu/power_watts": 311.2, "gpu/temperature_celsius": 64.0,
}  # fmt: skip


def put_json(store: ObjectStore, key: str, value: Mapping[str, Any]) -> None:
    store.put(key, json.dumps(value).encode())


def pulse_of(at: float = NOW, **changes: Any) -> dict[str, Any]:
    body = {"phase": "training", "step": 1240, "progress": 3, "time": at - 12, "attempt": 1, "owner": "box"}
    return body | {"observed": {"sample": SAMPLE, "alerts": []}} | changes


def put_attempt_record(store: ObjectStore, run_id: str, number: int, **changes: Any) -> None:
    put_json(store, attempt_key(run_id, number), {"attempt": number, "started": BEGUN, "machine": {}} | changes)


def manifest_of(run_id: str, step: int = 1200, attempt: int = 1, at: float = NOW - 34) -> dict[str, Any]:
    best = {"top1": 0.761, "step": 1000, "weights": "ema"}
    counters = {"step": step, "validated": 1000, "scores": {"val/top1": 0.75, "val_ema/top1": 0.761}, "best": best}
    told = {"run_id": run_id, "attempt": attempt, "step": step, "time": at, "config": CONFIG, "counters": counters}
    return told | {"object": {}, "parent": {}}


def put_checkpoint(
    store: ObjectStore, run_id: str, step: int = 1200, attempt: int = 1, at: float = NOW - 34, **changes: Any
) -> None:
    key, body = manifest_key(run_id, step, attempt), seal(manifest_of(run_id, step, attempt, at) | changes)
    store.put(key, body)
    lease = Lease(attempt=attempt, owner="box", newest=key, best=key, sha256={key: hashlib.sha256(body).hexdigest()})
    store.put(checkpoint_key(run_id, HEAD_FILE), lease.to_json())


def rows_of(first: int, last: int, attempt: int = 1, at: float = NOW - 60) -> list[dict[str, Any]]:
    """Rows of steps; 500 make an epoch."""
    begin = {"step": 0, "time": BEGUN, "event": "start", "attempt": attempt, "origin": 0}
    measured = {"train/loss": 1.25, "train/top1": 0.7, "train/lr": 0.1, "speed/images_per_second": 2560.0}
    measured |= {"speed/data_wait_fraction": 0.023}
    rows: list[dict[str, Any]] = [begin] if first <= 1 else []
    for step in range(first, last + 1):
        scores = {"val/top1": 0.75, "val/loss": 1.0} if step % 500 == 0 else {}
        rows.append({"step": step, "time": at, "train/epoch": step / 500} | measured | scores)
    return rows


def put_segment(store: ObjectStore, run_id: str, rows: list[dict[str, Any]], attempt: int = 1, cut: int = 0) -> None:
    """A segment of metrics; `cut`: so many bytes of its end are lost."""
    body = "".join(json.dumps(row) + "\n" for row in rows).encode()
    name = f"{rows[0]['step']:08d}-{rows[-1]['step']:08d}.jsonl"
    store.put(metrics_key(run_id, attempt, name), body[: len(body) - cut])


def put_running(store: ObjectStore, run_id: str, at: float = NOW) -> None:
    """A run in the middle, as it looks at `at`."""
    put_json(store, run_key(run_id, "config.json"), CONFIG)
    put_json(store, run_key(run_id, "spec.json"), {"recipe": "digits", "arguments": ["digits"], "data": ""})
    put_attempt_record(store, run_id, 1, started=at - 3600)
    put_segment(store, run_id, rows_of(1, 620, at=at - 700))
    put_segment(store, run_id, rows_of(621, 1200, at=at - 40))
    put_segment(store, run_id, rows_of(1201, 1230, at=at - 20))
    put_checkpoint(store, run_id, at=at - 34)
    put_json(store, run_key(run_id, "heartbeat.json"), pulse_of(at))


def put_finished(
    store: ObjectStore, run_id: str, *, started: float = BEGUN, top1: float = 0.9877, done: bool = True,
    copies: bool = True, attempts: int = 1, machine: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """A run at its end. `done`: all of it is stored. Without `copies` an older version wrote its `done.json`."""
    begun = {"attempt": 1, "started": started, "machine": machine or {}}
    end = {"exit": 0, "message": "5000 steps are done", "ended": started + 900}
    put_json(store, attempt_key(run_id, 1), begun | (end if attempts == 1 else {}))
    if attempts > 1:
        put_attempt_record(store, run_id, attempts, started=started + 500, machine=machine or {}, **end)
        end |= {"attempt": attempts, "started": started + 500}
    best = {"top1": top1, "step": 5000, "weights": "model"}
    result = {"run_id": run_id, "recipe": "digits", "steps": 5000, "epochs": 10, "steps_per_epoch": 500, "best": best}
    result |= {"seconds": 880.0, "attempts": attempts, "images_per_second": 1450.0, "last": {"val/top1": top1}}
    put_json(store, run_key(run_id, "config.json"), CONFIG)
    put_json(store, run_key(run_id, "result.json"), result)
    if done:
        copied = {"result": result} | ({"first": begun} if attempts > 1 else {})
        put_json(store, run_key(run_id, "done.json"), begun | end | (copied if copies else {}))
    put_json(store, run_key(run_id, "heartbeat.json"), pulse_of(started + 900, phase="saving", step=5000))
