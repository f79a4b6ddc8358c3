"""What the training loop measures of its steps: loss, hits and speed, as rows for `metrics` and the console."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.data.reading.loader import Loader
from trainer.learning.schedule import Settings
from trainer.learning.world import World, all_sum
from trainer.telemetry.metrics import Row


def event_behind(tensor: Tensor) -> Any:
    """An event behind all that the tensor's GPU was given so far; None on a CPU, where all is done."""
    if not tensor.is_cuda:
        return None
    event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # who waits leaves the core to others
    event.record()
    return event


@dataclass(frozen=True, kw_only=True)
class Look:
    """Steps whose sums are on their way to the host, and what was measured when they were sent."""

    steps: list[tuple[int, float]]  # number and learning rate
    resolution: int  # pixels of a side, in all of these steps
    table: Tensor  # (steps, 4) float64, on the host: sums over all processes; valid behind the event
    scale: Tensor | None  # () float32, on the host, likewise: the loss scale of fp16
    event: Any
    time: float
    speed_seconds: float  # of the host, between two looks; 0 for a warm-up, which has no speed
    values: dict[str, float]  # of the last step

    def is_due(self, until: int) -> bool:
        """Whether its steps are among those up to `until`, or have arrived anyway."""
        return self.steps[-1][0] <= until or self.event is None or bool(self.event.query())

    def rows(self, steps_per_epoch: int) -> list[Row]:
        """One row per step; the last one also has the speed. Waits for the sums.

        The speed is that of the host. While the queue of a GPU fills, it is the rate of launches: in the first look
        after a start, a validation or a change of size.
        """
        if self.event is not None:
            self.event.synchronize()
        table = self.table.tolist()
        rows: list[Row] = [
            {"step": step, "time": round(self.time, 3), "train/loss": loss / images, "train/top1": top1 / images,
             "train/top5": top5 / images, "train/lr": lr, "train/epoch": step / steps_per_epoch,
             "train/resolution": self.resolution}
            for (step, lr), (loss, top1, top5, images) in zip(self.steps, table, strict=True)
        ]  # fmt: skip
        if self.speed_seconds:
            rows[-1]["speed/images_per_second"] = sum(row[3] for row in table) / self.speed_seconds
        if self.scale is not None:
            rows[-1]["train/loss_scale"] = float(self.scale)
        rows[-1] |= self.values
        return rows


class StepLog:
    """The sums of recent steps. They stay on the device until a look sends them to the host, behind an event.

    Neither a step nor a look waits for them; whoever reads rows may. With log_every_steps=1 the host is one step ahead
    at most, so a GPU with short steps may run dry. Rows are read when they have arrived: on a CPU at once. All
    processes look at the same steps, since a look adds their sums up; each reads by itself.
    """

    def __init__(self, world: World, loader: Loader, steps_per_epoch: int):
        self.world, self.loader, self.steps_per_epoch = world, loader, steps_per_epoch
        self.pending: list[tuple[int, float, Tensor]] = []
        self.ends: list[float] = []  # when the host was done with each pending step
        self.looks: deque[Look] = deque()  # that are not read yet
        self.resolution = 0  # of the last step
        self.is_warm_up = False  # the pending step is the first of its size: kernels are compiled or chosen in it
        self.warm_ups, self.warm_up_seconds = 0, 0.0  # steps of warm-ups since the last look at others
        self.restart_clock()

    def restart_clock(self) -> None:
        """What came since the last look is not training."""
        self.started, self.waited = time.perf_counter(), self.loader.wait_seconds

    def add(self, step: int, settings: Settings, sums: Tensor) -> None:
        """Step `step` is given to the device; sums of (loss, top-1, top-5 hits, images) of this process, (4,)."""
        self.pending.append((step, settings.lr, sums))
        self.ends.append(time.perf_counter())
        self.is_warm_up = settings.resolution != self.resolution
        self.resolution = settings.resolution

    def seconds_until_done(self) -> float:
        """Wait until the device has done all steps, before a pause.

        Returns the seconds that this adds to the time of the run: 0 if steps are pending, since the look at them counts
        it.
        """
        last = self.looks[-1].event if self.looks else None
        if self.pending:
            last = event_behind(self.pending[-1][2])
        if last is None:
            return 0.0
        last.synchronize()
        if self.pending:
            return 0.0
        seconds = time.perf_counter() - self.started
        self.restart_clock()
        return seconds

    def look(self, values: Mapping[str, float], scale: Tensor | None = None) -> float:
        """Send the sums of the pending steps to the host. `values` join the row of the last one; so does the loss
        `scale` of fp16, a tensor on the device.

        Returns the seconds that these steps add to the time of the run. A warm-up is to be looked at by itself; it
        counts as long as the steps after it.
        """
        if not self.pending:
            return 0.0
        # In fp64 a sum of few fp32 numbers is exact, so it is the same in whatever order the processes are added up.
        sums = all_sum(torch.stack([sums for _, _, sums in self.pending]).double(), self.world)
        table = sums.to("cpu", non_blocking=True)
        seconds, mine = time.perf_counter() - self.started, dict(values)
        if not self.is_warm_up:
            mine["speed/data_wait_fraction"] = (self.loader.wait_seconds - self.waited) / seconds
            mine |= quantiles([end - begin for begin, end in pairwise([self.started, *self.ends])])
        if self.world.device.type == "cuda":
            mine["gpu/memory_bytes"] = torch.cuda.max_memory_allocated(self.world.device)
            mine["gpu/memory_reserved_bytes"] = torch.cuda.max_memory_reserved(self.world.device)
        if scale is not None:
            scale = scale.to("cpu", non_blocking=True)
        steps, event = [(step, lr) for step, lr, _ in self.pending], event_behind(self.pending[-1][2])
        speed_seconds = 0.0 if self.is_warm_up else seconds
        self.looks.append(
            Look(steps=steps, table=table, scale=scale, event=event, time=time.time(), speed_seconds=speed_seconds,
                 values=mine, resolution=self.resolution)
        )  # fmt: skip
        counted = self._counted(seconds, len(steps))
        self.pending.clear()
        self.ends.clear()
        self.is_warm_up = False
        self.restart_clock()
        return counted

    def _counted(self, seconds: float, steps: int) -> float:
        if self.is_warm_up:
            self.warm_ups, self.warm_up_seconds = self.warm_ups + steps, self.warm_up_seconds + seconds
            return seconds
        counted = seconds * (steps + self.warm_ups) / steps - self.warm_up_seconds
        self.warm_ups, self.warm_up_seconds = 0, 0.0
        return counted

    def read(self, until: int) -> Iterator[list[Row]]:
        """The rows of each look up to step `until`, which are waited for, and of any later one that has arrived."""
        while self.looks and self.looks[0].is_due(until):
            yield self.looks.popleft().rows(self.steps_per_epoch)


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 95th percentile and maximum of the times of steps, as the host sees them: a full queue paces it."""
    p50, p95 = np.quantile(seconds, [0.5, 0.95])
    return {
        "speed/step_seconds_p50": float(p50), "speed/step_seconds_p95": float(p95),
        "speed/step_seconds_max": max(seconds),
    }  # fmt: skip


def summary(rows: Sequence[Row]) -> dict[str, float]:
    """Loss, top-1 and speed over the rows of a look, for the console; {} if they have no speed."""
    if "speed/images_per_second" not in rows[-1]:
        return {}
    means = {name: sum(row[name] for row in rows) / len(rows) for name in ("train/loss", "train/top1")}
    return means | {"speed/images_per_second": rows[-1]["speed/images_per_second"]}
