"""Batches ahead of training: the same whatever the number of threads, from any step, for all ranks and resolutions."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from tests.images import image_folder
from tests.trainer.data.reading.loading import CONFIG, STEPS, Watch, jobs_of, load
from trainer.data.format import Copies, read_index
from trainer.data.making.prepare import prepare
from trainer.data.reading.decode import center_into, crop_into, image_size
from trainer.data.reading.loader import Batch, Job, Loader, train_jobs, val_jobs
from trainer.data.reading.order import CROP, CROP_DRAWS, draws, epoch_order, random_resized_crop
from trainer.data.reading.split import PreparedSplit
from trainer.data.stage import stage
from trainer.learning.schedule import Clock
from trainer.recipes.config import Config, DataConfig
from trainer.recipes.sides import wanted_spans
from trainer.setup import Data
from trainer.store import open_store


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) > 0 and all(
        torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) and torch.equal(a.flips, b.flips)
        for a, b in zip(first, second, strict=True)
    )


def test_a_batch_holds_the_images_of_its_step_cropped_by_seed_epoch_and_index(train_split: PreparedSplit) -> None:
    batches, flips = load(jobs_of(train_split)), []
    assert len(batches) == STEPS * 2
    for number, batch in enumerate(batches):
        epoch, place = divmod(number, 6)
        indices = epoch_order(CONFIG.seed, epoch, 24)[place * 4 : place * 4 + 4]
        assert batch.labels.tolist() == train_split.labels[indices].tolist()
        assert (batch.images.shape, batch.images.dtype) == ((4, 32, 32, 3), torch.uint8)
        for row, index in enumerate(indices):
            (drawn,) = draws(CROP, CONFIG.seed, epoch, indices[row : row + 1], CROP_DRAWS)
            jpeg, expected = train_split.jpeg(index), np.empty((32, 32, 3), np.uint8)
            flips.append(drawn[0] < 0.5)
            data = CONFIG.data
            box = random_resized_crop(drawn[1:], *image_size(jpeg), data.crop_scale, data.crop_ratio)
            crop_into(expected, jpeg, box)
            assert (batch.images[row].numpy() == expected).all()
            assert bool(batch.flips[row]) == flips[-1]
    assert 0.25 < np.mean(flips) < 0.75


def test_the_number_of_threads_changes_nothing(train_split: PreparedSplit) -> None:
    one = load(jobs_of(train_split), workers=1)
    for workers in (2, 5, 0):
        assert same(one, load(jobs_of(train_split), workers=workers))
    assert not same(one, load(jobs_of(train_split, replace(CONFIG, seed=1))))


@pytest.mark.parametrize("first_step", [1, 3, 7])
def test_starting_at_a_step_gives_the_rest_of_the_batches_and_decodes_nothing_before(
    train_split: PreparedSplit, first_step: int
) -> None:
    watch = Watch()
    rest = load(watch.over(jobs_of(train_split, first_step=first_step)), workers=1)
    assert same(load(jobs_of(train_split))[first_step * 2 :], rest)
    whole = [index for job in jobs_of(train_split) for index in job.indices.tolist()]
    assert watch.decoded == whole[first_step * 8 :]


@pytest.mark.parametrize(("world", "device"), [(2, 4), (4, 2), (2, 2), (1, 8), (3, 2), (5, 1)])
def test_all_ranks_together_see_the_images_of_one(train_split: PreparedSplit, world: int, device: int) -> None:
    config = replace(CONFIG, device_batch_size=device)

    def images_of_steps(config: Config, world: int) -> list[dict[int, bytes]]:
        """For each step, the pixels of every image."""
        found: list[dict[int, bytes]] = [{} for _ in range(STEPS)]
        for rank in range(world):
            accum = len(config.micro_batches_of(rank, world))
            jobs = list(jobs_of(train_split, config, rank=rank, world=world))
            for number, (job, batch) in enumerate(
                zip(jobs, load(iter(jobs), images=config.device_batch_size), strict=True)
            ):
                for index, image in zip(job.indices.tolist(), batch.images, strict=True):
                    found[number // accum][index] = image.numpy().tobytes()
        return found

    steps = images_of_steps(config, world)
    assert [len(step) for step in steps] == [8] * STEPS
    assert steps == images_of_steps(replace(CONFIG, device_batch_size=8), 1)


@pytest.mark.parametrize("world", [1, 2, 4, 20])
@pytest.mark.parametrize("batch_size", [4, 15, 100])
def test_validation_meets_every_image_once_over_all_ranks(
    val_split: PreparedSplit, world: int, batch_size: int
) -> None:
    config, seen = replace(CONFIG, val_batch_size=batch_size), []
    for rank in range(world):
        jobs = list(val_jobs(config, val_split, rank=rank, world=world))
        batches = load(iter(jobs), images=min(batch_size, 15))
        assert [batch.labels.tolist() for batch in batches] == [val_split.labels[job.indices].tolist() for job in jobs]
        for index, image in zip(
            (i for job in jobs for i in job.indices),
            (image for batch in batches for image in batch.images),
            strict=True,
        ):
            expected = np.empty((32, 32, 3), np.uint8)
            center_into(expected, val_split.jpeg(index), 32)
            assert (image.numpy() == expected).all()
            seen.append(int(index))
        assert not any(batch.flips.any() for batch in batches)
    assert sorted(seen) == list(range(15))


def test_resolutions_change_between_epochs_and_each_opens_its_copy(train_split: PreparedSplit) -> None:
    data = replace(CONFIG.data, start_resolution=16, resolution=32, ramp_end_epoch=2, resolution_multiple=8)
    config, opened = replace(CONFIG, data=data), []

    def open_copy(pixels: int) -> tuple[PreparedSplit]:
        opened.append(pixels)
        return (train_split,)

    resolution = Clock.of(config, 24).resolution
    jobs = train_jobs(config, open_copy, resolution, images=24, rank=0, world=1, first_step=0, steps=STEPS)
    shapes = [tuple(batch.images.shape) for batch in load(jobs)]
    assert shapes == [(4, 16, 16, 3)] * 6 + [(4, 24, 24, 3)] * 6 + [(4, 32, 32, 3)] * 4
    assert set(opened) == {16, 24, 32}
    resumed = train_jobs(config, open_copy, resolution, images=24, rank=0, world=1, first_step=3, steps=STEPS)
    assert [tuple(batch.images.shape) for batch in load(resumed)] == shapes[6:]


def test_a_set_smaller_than_a_batch_needs_no_more_memory_than_it_has(val_split: PreparedSplit) -> None:
    jobs = val_jobs(replace(CONFIG, val_batch_size=10**6), val_split, rank=0, world=1)
    (batch,) = load(jobs, images=15)
    assert len(batch.labels) == 15


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_ramp_reads_exactly_the_copies_that_were_staged(tmp_path: Path, s3_uri: str, epochs: int) -> None:
    """One epoch at 32 px needs the 40-px copy alone; the ramp to 48 px the 64-px copy as well."""
    data = DataConfig(
        start_resolution=32, resolution=48, ramp_start_epoch=0.5, ramp_end_epoch=2, resolution_multiple=16,
        val_resize=48, val_crop=48, train_sides=(64, 40), val_side=64, workers=2,
    )  # fmt: skip
    config = replace(CONFIG, epochs=epochs, data=data)
    copies, wanted = Copies((64, 40), (64,), 90), wanted_spans(config)
    source = image_folder(tmp_path / "folder", train=8, val=2, side=96)
    result = prepare(str(source), open_store(s3_uri), copies)
    folder = stage(f"{s3_uri}/{result.prefix}", tmp_path / "scratch", copies, wanted)
    staged = {path.name for path in folder.glob("*.arrow")}
    assert staged == {"train-40px-00000.arrow", "val-64px-00000.arrow"} | (
        {"train-64px-00000.arrow"} if epochs == 3 else set()
    )
    found = Data(folder, read_index(folder), data)
    jobs = train_jobs(
        config, partial(found.copies, "train"), Clock.of(config, 24).resolution,
        images=24, rank=0, world=1, first_step=0, steps=3 * epochs,
    )  # fmt: skip
    sizes = {(cast(PreparedSplit, job.split).short_side, job.shape[0]) for job in jobs}
    assert sizes == ({(40, 32), (64, 48)} if epochs == 3 else {(40, 32)})
    if epochs == 3:
        assert found.open("train", 40) is found.open("train", 48)
    assert found.open("val", 48).short_side == 64


def test_the_threads_that_decode_step_back_behind_the_one_that_trains(train_split: PreparedSplit) -> None:
    jobs, before = list(jobs_of(train_split)), os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    found: set[int] = set()

    def watched(job: Job) -> Job:
        def write(out: np.ndarray, row: int) -> None:
            found.add(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
            job.write(out, row)

        return replace(job, write=write)

    load(map(watched, jobs), workers=3)
    assert found == {min(before + 5, 19)}
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


def test_a_sandbox_that_refuses_priorities_loads_all_the_same(
    train_split: PreparedSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    expected = load(jobs_of(train_split))
    monkeypatch.setattr(os, "setpriority", refuse)
    assert same(load(jobs_of(train_split)), expected)


def test_the_host_stays_at_most_four_batches_ahead_of_a_gpu(
    train_split: PreparedSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded, waited = list[object](), list[object]()

    class Event:
        def __init__(self, blocking: bool) -> None:
            assert blocking, "the core is for the threads that decode"

        def synchronize(self) -> None:
            waited.append(self)

    class Stream:
        def record_event(self, event: object) -> object:
            recorded.append(event)
            return event

    monkeypatch.setattr(torch.cuda, "Event", Event)
    jobs, cpu = jobs_of(train_split), torch.device("cpu")
    with Loader(jobs, max_images=4, image_bytes=3 * 32**2, workers=1, device=cpu) as loader:
        for batch in range(1, 8):
            loader._keep_pace(Stream())  # type: ignore[arg-type]
            assert waited == recorded[: max(0, batch - 4)]
