"""A run of made-up numbers, as a trainer, its observer and the guard leave one in a store. Nothing is trained."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random
from typing import Any

from trainer.contract import manifest_key, metrics_key, run_key
from trainer.learning.schedule import Clock
from trainer.recipes.config import Config
from trainer.recipes.fields import to_json
from trainer.recipes.rn50 import rn50_16
from trainer.store import ObjectStore
from trainer.telemetry.metrics import Row, start_row
from trainer.telemetry.samples import samples_key

BEGIN = 1_780_000_000.0
LOG_EVERY, SEGMENT_SECONDS, SAMPLE_SECONDS, VALIDATION_SECONDS = 20, 30.0, 10.0, 40.0
STARVED = "data wait 23 % over the last minute: the loader is the limit, more --data.workers or a type with more vCPU"
VERSIONS = {"torch": "2.11.0", "torchvision": "0.26.0", "python": "3.11.9", "commit": "0123abc", "image": ""}


@dataclass(frozen=True, kw_only=True)
class MadeRun:
    """`continues` says from which step each later attempt went on; the one before had done `lost` steps more."""

    run_id: str = "made-up"
    config: Config = field(default_factory=rn50_16)
    steps_per_epoch: int = 250
    done: int = 2_600  # steps so far
    continues: Sequence[int] = (900, 1_700)
    lost: int = 30
    seconds_per_step: float = 1.4
    seed: int = 0

    @property
    def total(self) -> int:
        return self.steps_per_epoch * self.config.epochs

    def put(self, store: ObjectStore) -> None:
        """All of it: rows, samples with alerts, config, spec, spend, and one manifest for the versions."""
        random, begin = Random(self.seed), BEGIN
        for attempt, (first, end) in enumerate(pairwise([0, *self.continues, self.done]), 1):
            last = end if attempt > len(self.continues) else end + self.lost
            rows = [start_row(attempt, first, attempt - 1) | {"time": begin}]
            rows += self.rows(random, first, last, begin)
            put_rows(store, self.run_id, attempt, rows)
            samples = [*self.samples(random, rows), *self.alerts(attempt, rows)]
            body = b"".join(json.dumps(row).encode() + b"\n" for row in sorted(samples, key=lambda row: row["time"]))
            store.put(samples_key(self.run_id, attempt, 1), body)
            begin = rows[-1]["time"] + 3600.0  # an hour without a machine
        self.put_documents(store, rows[-1]["time"])

    def put_documents(self, store: ObjectStore, now: float) -> None:
        hours = self.done * self.seconds_per_step / 3600
        machine = {"id": "i-0", "usd_per_hour": 0.45, "ended": 0.0}
        spend = {"at": now, "machines": [machine], "usd": round(0.45 * hours, 4)}
        manifest = manifest_key(self.run_id, self.done, len(self.continues) + 1)
        for key, value in {
            run_key(self.run_id, "config.json"): to_json(self.config),
            run_key(self.run_id, "spec.json"): {"recipe": self.config.recipe, "budget_usd": 8.0},
            run_key(self.run_id, "spend.json"): spend,
            manifest: {"versions": VERSIONS},
        }.items():
            store.put(key, json.dumps(value).encode())

    def rows(self, random: Random, first: int, last: int, begin: float) -> Iterator[Row]:
        """Steps `first` + 1 to `last`, with a validation after each epoch."""
        clock, now = Clock(config=self.config, steps_per_epoch=self.steps_per_epoch), begin + 60.0
        for step in range(first + 1, last + 1):
            settings = clock.at(step - 1)
            seconds = self.seconds_per_step * (settings.resolution / self.config.data.resolution) ** 2
            now += seconds
            learned = 1 - math.exp(-4.5 * step / self.total) * (0.7 + 0.3 * math.cos(0.5 * math.pi * step / self.total))
            row: Row = {"step": step, "time": round(now, 3), "train/epoch": step / self.steps_per_epoch}
            row |= {"train/loss": 6.9 - 4.6 * learned + random.gauss(0, 0.12), "train/lr": settings.lr}
            row |= {"train/top1": max(0.0, 0.71 * learned + random.gauss(0, 0.015)), "train/top5": 0.88 * learned}
            if step % LOG_EVERY == 0:
                row |= self.speed(random, step, seconds)
            if step % self.steps_per_epoch == 0:
                now += VALIDATION_SECONDS
                row |= {"val/loss": 6.8 - 4.9 * learned, "val/top1": 0.745 * learned, "val/top5": 0.92 * learned}
                row |= {"val_ema/loss": 6.9 - 5.1 * learned, "val_ema/top1": 0.752 * learned**1.3}
                row |= {"val_ema/top5": 0.925 * learned**1.2}
            yield row

    def is_starved(self, step: int) -> bool:
        return 0.52 < step / self.total < 0.56

    def speed(self, random: Random, step: int, seconds: float) -> dict[str, float]:
        waits = random.uniform(0.19, 0.27) if self.is_starved(step) else abs(random.gauss(0.004, 0.004))
        slow = seconds / (1 - waits)
        return {
            "speed/images_per_second": self.config.global_batch_size / slow, "speed/data_wait_fraction": waits,
            "speed/step_seconds_p50": slow, "speed/step_seconds_p95": slow * random.uniform(1.02, 1.06),
            "speed/step_seconds_max": slow * 1.2, "checkpoint/lag_seconds": random.uniform(2, 52),
            "checkpoint/stall_seconds": random.choice((0.0, 0.0, random.uniform(0.01, 0.03))),
            "gpu/memory_bytes": 17.2e9, "gpu/memory_reserved_bytes": 19.1e9,
        }  # fmt: skip

    def samples(self, random: Random, rows: Sequence[Row]) -> Iterator[Row]:
        """One each ten seconds of an attempt: the GPU rests while it starts and while the loader is behind."""
        kwh, at, now = 0.0, 0, rows[0]["time"]
        while now < rows[-1]["time"]:
            while at + 1 < len(rows) and rows[at + 1]["time"] <= now:
                at += 1
            step = rows[at]["step"]
            busy = 0.0 if not at else 0.74 if self.is_starved(step) else 0.985
            busy = min(1.0, max(0.0, busy + random.gauss(0, 0.008))) if busy else 0.0
            watts = 70 + 225 * busy + random.gauss(0, 3)
            kwh += watts * SAMPLE_SECONDS / 3.6e6
            yield {
                "step": step, "time": round(now, 3), "phase": "training", "gpu/count": 1, "gpu/utilization": busy,
                "gpu/memory_used_bytes": 19.8e9 if busy else 0.6e9, "gpu/memory_total_bytes": 24e9,
                "gpu/power_watts": watts, "gpu/temperature_celsius": 44 + 26 * busy + random.gauss(0, 0.7),
                "machine/cpu_fraction": 0.12 + 0.6 * busy + random.gauss(0, 0.03),
                "machine/memory_available_bytes": 21e9, "process/trainer_memory_bytes": 6.2e9,
                "disk/scratch_free_bytes": 97e9, "disk/read_bytes_per_second": 4e6 * random.random(),
                "disk/write_bytes_per_second": 2e6 + 9e6 * (random.random() < 0.2),
                "network/received_bytes_per_second": 2e5 if busy else 2.4e8, "network/sent_bytes_per_second":
                2.1e7 * (random.random() < 0.25), "energy/kwh": kwh, "heartbeat/age_seconds": 1.0,
            }  # fmt: skip
            now += SAMPLE_SECONDS

    def alerts(self, attempt: int, rows: Sequence[Row]) -> Iterator[Row]:
        first = rows[0]["step"]
        kind, text = ("resumed", f"attempt {attempt} goes on from step {first:,}; {self.lost} steps are done again")
        kind, text = (kind, text) if first else ("started", f"recipe {self.config.recipe}, {self.total:,} steps")
        yield alert_row(rows[1], kind, "info", text)
        starved = next((row for row in rows[1:] if self.is_starved(row["step"])), None)
        if starved:
            yield alert_row(starved, "starved", "warning", STARVED)


def alert_row(row: Row, kind: str, level: str, text: str) -> Row:
    return {"step": row["step"], "time": row["time"], "event": "alert", "kind": kind, "level": level, "text": text}


def put_rows(store: ObjectStore, run_id: str, attempt: int, rows: Sequence[Row]) -> None:
    """Segments as the trainer makes them, one for each half minute."""
    segment: list[dict[str, Any]] = []
    for row in rows:
        segment.append(row)
        if row is rows[-1] or row["time"] - segment[0]["time"] >= SEGMENT_SECONDS:
            name = f"{segment[0]['step']:08d}-{row['step']:08d}.jsonl"
            body = b"".join(json.dumps(one).encode() + b"\n" for one in segment)
            store.put(metrics_key(run_id, attempt, name), body)
            segment = []
