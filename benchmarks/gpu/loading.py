"""The real loader on prepared photographs, repeated: images/s of a training as a share of one on random images."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.gpu.images import DIGITS, PHOTOGRAPHS, prepared
from benchmarks.gpu.measure import Found, Place, timed
from benchmarks.gpu.steps import Ours, config_of, ours
from trainer.data.format import read_index
from trainer.data.reading.loader import Loader, train_jobs
from trainer.recipes.config import Config
from trainer.setup import Data

THREADS = (4, 8, 16)
STEPS = 10**6  # more than are ever taken


def shares(place: Place) -> Found:
    folder = prepared(place.images, DIGITS if place.tiny else PHOTOGRAPHS)
    config = config_of(place)
    data = Data(folder, read_index(folder), config.data)
    threads = (1, 2) if place.tiny else THREADS
    synthetic = timed(place, ours(place, config).step, rounds=3)
    found: Found = {"synthetic": synthetic}
    for count in threads:
        with loader(place, config, data, count) as batches:
            training: Ours = ours(place, config, batches=iter(batches))
            one = _rate(place, training.step, batches)
        one["share_of_synthetic"] = round(one["images_per_second"] / synthetic["images_per_second"], 3)
        found[f"train_{count}_threads"] = one
    with loader(place, config, data, threads[-1]) as batches:
        feed = iter(batches)
        found[f"only_{threads[-1]}_threads"] = _rate(place, lambda: next(feed), batches)
    side = data.open("train", place.pixels).short_side
    return found | {"images": data.index.splits["train"].images, "stored_side": side}


def loader(place: Place, config: Config, data: Data, threads: int) -> Loader:
    jobs = train_jobs(
        config, partial(data.copies, "train"), lambda step: place.pixels,
        images=data.index.splits["train"].images, rank=0, world=1, first_step=0, steps=STEPS,
    )  # fmt: skip
    return Loader(jobs, max_images=place.batch, image_bytes=place.pixels**2 * 3, workers=threads, device=place.device)


def _rate(place: Place, step: Callable[[], Any], batches: Loader) -> Found:
    """For a while, after a few steps: images/s, share of time in which the step waited for data, cores in use."""
    for _ in range(2 if place.tiny else 6):
        step()
    place.drain()
    before, busy, began, steps = batches.wait_seconds, time.process_time(), time.perf_counter(), 0
    while time.perf_counter() < began + (0.1 if place.tiny else 2.5):
        step()
        steps += 1
    place.drain()
    seconds = time.perf_counter() - began
    return {
        "images_per_second": round(steps * place.batch / seconds), "steps": steps,
        "data_wait_fraction": round((batches.wait_seconds - before) / seconds, 3),
        "cores_used": round((time.process_time() - busy) / seconds, 1), "cores": len(os.sched_getaffinity(0)),
    }  # fmt: skip
