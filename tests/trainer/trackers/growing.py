"""A run that grows in a store, as a trainer with many interruptions would leave it. No torch, and no trainer."""

from __future__ import annotations

import json
import math
import random

from trainer.contract import manifest_key, metrics_key, run_key
from trainer.store import ObjectStore
from trainer.telemetry.metrics import Row, start_row
from trainer.telemetry.samples import samples_key

UNCOMMITTED = 3  # steps that each attempt does in vain, but for the last
SECONDS = 0.25  # of a step


class Growing:
    """Each attempt goes on from the newest checkpoint, and ends before it has committed all that it logged."""

    def __init__(self, store: ObjectStore, run_id: str) -> None:
        self.store, self.run_id, self.random = store, run_id, random.Random(run_id)
        self.attempt = self.step = 0
        self.sampled: dict[int, float] = {}  # by step, what samples say of the GPU
        self.clock = 1_790_000_000.0
        store.put(
            run_key(self.run_id, "config.json"), json.dumps({"recipe": "digits", "optim": {"peak_lr": 0.4}}).encode()
        )

    def grow(self, steps: int, *, whole: bool = False) -> None:
        """The next attempt: so many steps more, and the commit of most of them, or of all."""
        self.attempt += 1
        rows = [start_row(self.attempt, self.step, self.attempt - 1) | {"time": self.clock}]
        rows += [self.row(self.step + 1 + i) for i in range(steps)]
        half = len(rows) // 2
        self.put_rows(rows[:half])
        self.put_sample(rows[half])
        self.put_rows(rows[half:])
        self.step += steps - (0 if whole else UNCOMMITTED)
        self.commit()

    def row(self, step: int) -> Row:
        self.clock += SECONDS
        row: Row = {"step": step, "time": round(self.clock, 3), "train/loss": self.random.random()}
        row |= {"train/lr": 0.4 / step, "speed/images_per_second": 600.0 + step % 7, "train/epoch": step / 25}
        if step % 50 == 0:
            row |= {"val/top1": self.random.random(), "val/loss": math.nan if step % 100 == 0 else 1.5}
        return row

    def put_rows(self, rows: list[Row]) -> None:
        name = f"{rows[0]['step']:08d}-{rows[-1]['step']:08d}.jsonl"
        self.store.put(metrics_key(self.run_id, self.attempt, name), lines(rows))

    def put_sample(self, row: Row) -> None:
        """Where a metric row is, and again in the time of the same step."""
        sample = {"step": row["step"], "time": row["time"], "phase": "training", "gpu/utilization": 0.25}
        alert = sample | {"event": "alert", "kind": "starved", "level": "warning", "text": "slow"}
        newer = sample | {"time": row["time"] + 0.1, "gpu/utilization": 0.5 + self.attempt / 100}
        self.sampled[row["step"]] = newer["gpu/utilization"]
        self.store.put(samples_key(self.run_id, self.attempt, 1), lines([sample, alert, newer]))

    def commit(self) -> None:
        self.store.put(manifest_key(self.run_id, self.step, self.attempt), b"{}")

    def finish(self) -> None:
        self.store.put(run_key(self.run_id, "done.json"), b"{}")

    def rewind(self, step: int) -> None:
        """Back to an older step, as `make checkpoints ARGS="rewind STEP"` does it."""
        self.attempt += 1
        row = start_row(self.attempt, step, self.attempt - 1) | {"rewind": True, "time": self.clock}
        self.store.put(metrics_key(self.run_id, self.attempt, f"{step:08d}-{step:08d}.jsonl"), lines([row]))
        self.step = step
        self.commit()


def lines(rows: list[Row]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
