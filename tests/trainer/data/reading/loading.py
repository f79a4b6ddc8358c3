"""Jobs and batches of the loader's tests: 24 images of training in batches of four, as many steps as fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from trainer.data.reading.loader import Batch, Job, Loader, train_jobs
from trainer.data.reading.split import PreparedSplit
from trainer.learning.schedule import Clock
from trainer.recipes.config import Config, DataConfig

CPU = torch.device("cpu")
CONFIG = Config(
    epochs=3, global_batch_size=8, device_batch_size=4, val_batch_size=4,
    data=DataConfig(resolution=32, start_resolution=32, val_resize=32, val_crop=32, workers=2),
)  # fmt: skip
STEPS = 8  # 24 images, so 3 steps of 2 micro-batches in an epoch: not quite three epochs


def jobs_of(
    split: PreparedSplit, config: Config = CONFIG, *, first_step: int = 0, rank: int = 0, world: int = 1
) -> Iterator[Job]:
    clock = Clock.of(config, len(split))
    return train_jobs(
        config, lambda pixels: (split,), clock.resolution,
        images=len(split), rank=rank, world=world, first_step=first_step, steps=STEPS,
    )  # fmt: skip


def load(jobs: Iterator[Job], *, workers: int = 2, pixels: int = 32, images: int = 4) -> list[Batch]:
    """All batches, copied: each is valid only until the next."""
    with Loader(jobs, max_images=images, image_bytes=pixels * pixels * 3, workers=workers, device=CPU) as loader:
        return [Batch(batch.images.clone(), batch.labels.clone(), batch.flips.clone(), batch.draws) for batch in loader]


@dataclass
class Watch:
    """Counts what really runs: batches handed to the loader, and images decoded."""

    before: Callable[[int], None] = lambda index: None  # called in the thread that decodes
    batches: int = 0
    decoded: list[int] = field(default_factory=list)

    def over(self, jobs: Iterator[Job]) -> Iterator[Job]:
        for job in jobs:
            self.batches += 1
            yield replace(job, write=self._around(job))

    def _around(self, job: Job) -> Callable[[np.ndarray, int], None]:
        def watched(out: np.ndarray, row: int) -> None:
            index = int(job.indices[row])
            self.before(index)
            self.decoded.append(index)
            job.write(out, row)

        return watched
