"""What the training loop measures of its steps: loss, hits and speed, as rows for `metrics` and the console."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from trainer.data.reading.loader import Loader
from trainer.learning.schedule import Settings
from trainer.learning.world import World, all_sum
from trainer.telemetry.metrics import Row


class StepLog:
    """The sums of recent steps, left on the device until they are read, so that a step never waits for the host."""

    def __init__(self, world: World, loader: Loader):
        self.world, self.loader = world, loader
        self.pending: list[tuple[int, float, Tensor]] = []
        self.resolution = 0  # of the last step
        self.is_warm_up = (
            False  # the step that is pending is the first of its size: kernels are compiled or chosen in it
        )
        self.warm_ups, self.warm_up_seconds = 0, 0.0  # steps of warm-ups since the last read of others
        self.seconds = 0.0  # what the last read adds to the time of the run: a warm-up counts as the steps after it
        self.summary: dict[str, float] = {}  # means over those steps
        self.restart_clock()

    def restart_clock(self) -> None:
        """What came since the last read is not training."""
        self.started, self.waited = time.perf_counter(), self.loader.wait_seconds

    def add(self, step: int, settings: Settings, sums: Tensor) -> None:
        """Step `step` is done; sums of (loss, top-1 hits, top-5 hits, images) of this process, (4,)."""
        self.pending.append((step, settings.lr, sums))
        self.is_warm_up = settings.resolution != self.resolution
        self.resolution = settings.resolution

    def read(self, steps_per_epoch: int) -> list[Row]:
        """One row per step since the last read, over all processes; the last one also has the speed.

        A warm-up is to be read at once, and has no speed.
        """
        if not self.pending:
            return []
        table = all_sum(torch.stack([sums for _, _, sums in self.pending]), self.world).tolist()
        seconds, steps = time.perf_counter() - self.started, len(table)
        rows: list[Row] = [
            {"step": step, "train/loss": loss / images, "train/top1": top1 / images, "train/top5": top5 / images,
             "train/lr": lr, "train/epoch": step / steps_per_epoch}
            for (step, lr, _), (loss, top1, top5, images) in zip(self.pending, table, strict=True)
        ]  # fmt: skip
        means = {name: sum(row[name] for row in rows) / steps for name in ("train/loss", "train/top1")}
        if self.is_warm_up:
            self.seconds, self.summary = seconds, {}
            self.warm_ups, self.warm_up_seconds = self.warm_ups + steps, self.warm_up_seconds + seconds
        else:
            speed = {
                "speed/images_per_second": sum(row[3] for row in table) / seconds,
                "speed/data_wait_fraction": (self.loader.wait_seconds - self.waited) / seconds,
            }
            rows[-1] |= speed
            self.summary = means | {"speed/images_per_second": speed["speed/images_per_second"]}
            self.seconds = seconds * (steps + self.warm_ups) / steps - self.warm_up_seconds
            self.warm_ups, self.warm_up_seconds = 0, 0.0
        if self.world.device.type == "cuda":
            rows[-1]["gpu/memory_bytes"] = torch.cuda.max_memory_allocated(self.world.device)
        self.pending.clear()
        self.is_warm_up = False
        self.restart_clock()
        return rows
