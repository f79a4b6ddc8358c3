"""Batches ahead of training: the same whatever the number of threads, restartable anywhere, bounded, and ended."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.images import image_folder, open_split, prepared
from trainer.data.format import Copies, read_index
from trainer.data.making.prepare import Prepared, prepare
from trainer.data.reading.decode import center_into, crop_into, image_size
from trainer.data.reading.loader import Batch, Job, Loader, train_jobs, val_jobs
from trainer.data.reading.order import CROP, CROP_DRAWS, draws, epoch_order, random_resized_crop
from trainer.data.reading.split import PreparedSplit
from trainer.data.stage import stage
from trainer.learning.schedule import Clock
from trainer.recipes.config import Config, DataConfig
from trainer.setup import Data
from trainer.store import open_store

CPU = torch.device("cpu")
CONFIG = Config(
    epochs=3, global_batch_size=8, device_batch_size=4, val_batch_size=4,
    data=DataConfig(resolution=32, start_resolution=32, val_resize=32, val_crop=32, workers=2),
)  # fmt: skip
STEPS = 8  # 24 images, so 3 steps of 2 micro-batches in an epoch: not quite three epochs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Prepared]:
    """24 images of training, 15 of validation, in three classes."""
    root = tmp_path_factory.mktemp("loader")
    return root, prepared(image_folder(root / "folder", train=8, val=5), root)


@pytest.fixture(scope="module")
def train_split(data: tuple[Path, Prepared]) -> PreparedSplit:
    return open_split(*data)


@pytest.fixture(scope="module")
def val_split(data: tuple[Path, Prepared]) -> PreparedSplit:
    return open_split(*data, split="val")


def jobs_of(
    split: PreparedSplit, config: Config = CONFIG, *, first_step: int = 0, rank: int = 0, world: int = 1
) -> Iterator[Job]:
    clock = Clock.of(config, len(split))
    return train_jobs(
        config, lambda pixels: split, clock.resolution,
        images=len(split), rank=rank, world=world, first_step=first_step, steps=STEPS,
    )  # fmt: skip


def load(jobs: Iterator[Job], *, workers: int = 2, pixels: int = 32, images: int = 4) -> list[Batch]:
    """All batches, copied: each is valid only until the next."""
    with Loader(jobs, max_images=images, max_pixels=pixels, workers=workers, device=CPU) as loader:
        return [Batch(batch.images.clone(), batch.labels.clone(), batch.flips.clone(), batch.draws) for batch in loader]


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) > 0 and all(
        torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) and torch.equal(a.flips, b.flips)
        for a, b in zip(first, second, strict=True)
    )


def decoders() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("decode")]


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


@pytest.mark.parametrize(("world", "device"), [(2, 4), (4, 2), (2, 2), (1, 8)])
def test_all_ranks_together_see_the_images_of_one(train_split: PreparedSplit, world: int, device: int) -> None:
    config = replace(CONFIG, device_batch_size=device)

    def images_of_steps(config: Config, world: int) -> list[dict[int, bytes]]:
        """For each step, the pixels of every image."""
        found: list[dict[int, bytes]] = [{} for _ in range(STEPS)]
        accum = config.grad_accum_steps(world)
        for rank in range(world):
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

    def open_copy(pixels: int) -> PreparedSplit:
        opened.append(pixels)
        return train_split

    resolution = Clock.of(config, 24).resolution
    jobs = train_jobs(config, open_copy, resolution, images=24, rank=0, world=1, first_step=0, steps=STEPS)
    shapes = [tuple(batch.images.shape) for batch in load(jobs)]
    assert shapes == [(4, 16, 16, 3)] * 6 + [(4, 24, 24, 3)] * 6 + [(4, 32, 32, 3)] * 4
    assert set(opened) == {16, 24, 32}
    resumed = train_jobs(config, open_copy, resolution, images=24, rank=0, world=1, first_step=3, steps=STEPS)
    assert [tuple(batch.images.shape) for batch in load(resumed)] == shapes[6:]


def test_no_more_than_three_batches_are_in_memory(train_split: PreparedSplit) -> None:
    watch = Watch()
    with Loader(watch.over(jobs_of(train_split)), max_images=4, max_pixels=32, workers=5, device=CPU) as loader:
        assert Loader.DEPTH == 3
        for number, _ in enumerate(loader):
            assert watch.batches == min(number + 3, STEPS * 2)
            assert len(watch.decoded) <= watch.batches * 4
    assert len(watch.decoded) == STEPS * 8


def test_a_batch_in_use_is_not_written_to_until_the_next_is_asked_for(train_split: PreparedSplit) -> None:
    watch = Watch()
    with Loader(watch.over(jobs_of(train_split)), max_images=4, max_pixels=32, workers=5, device=CPU) as loader:
        for number, batch in enumerate(loader):
            before = batch.images.clone(), batch.labels.clone(), batch.flips.clone()
            deadline = time.monotonic() + 10
            while len(watch.decoded) < min(number + 3, STEPS * 2) * 4:  # all that may be decoded ahead is
                assert time.monotonic() < deadline
                time.sleep(0.001)
            assert all(
                torch.equal(a, b) for a, b in zip(before, (batch.images, batch.labels, batch.flips), strict=True)
            )


def test_a_broken_image_is_named_by_split_and_number_and_the_threads_end(
    data: tuple[Path, Prepared], tmp_path: Path
) -> None:
    root, result = data
    shutil.copytree(root / result.prefix, tmp_path / result.prefix)
    jpeg = open_split(tmp_path, result).jpeg(13).tobytes()
    (shard,) = (tmp_path / result.prefix).glob("train-*.arrow")
    body = shard.read_bytes()
    assert body.count(jpeg) == 1
    shard.write_bytes(body.replace(jpeg, bytes(len(jpeg))))
    with pytest.raises(
        RuntimeError, match=r"image 13 of train \(train/n01443537/n01443537_5.JPEG\) cannot be decoded"
    ) as caught:
        load(jobs_of(open_split(tmp_path, result)))
    assert isinstance(caught.value.__cause__, ValueError)
    assert decoders() == []


def test_closing_ends_the_threads_at_the_end_in_the_middle_and_before_the_start(val_split: PreparedSplit) -> None:
    for taken in (0, 1, 2, 4):
        with Loader(
            val_jobs(CONFIG, val_split, rank=0, world=1), max_images=4, max_pixels=32, workers=3, device=CPU
        ) as loader:
            batches = iter(loader)
            for _ in range(taken):
                next(batches)
                assert decoders() != []
        assert decoders() == []
        loader.close()  # again: fine


def test_closing_does_not_decode_what_is_still_queued(train_split: PreparedSplit) -> None:
    config, watch = replace(CONFIG, global_batch_size=24, device_batch_size=24), Watch(lambda i: time.sleep(0.02))
    with Loader(
        watch.over(jobs_of(train_split, config)), max_images=24, max_pixels=32, workers=1, device=CPU
    ) as loader:
        next(iter(loader))
    assert watch.batches == 3
    assert 24 <= len(watch.decoded) < 3 * 24


def test_an_error_in_the_body_of_the_loop_ends_the_threads(train_split: PreparedSplit) -> None:
    def run() -> None:
        with Loader(jobs_of(train_split), max_images=4, max_pixels=32, workers=2, device=CPU) as loader:
            for _ in loader:
                raise KeyError("of the loop")

    with pytest.raises(KeyError):
        run()
    assert decoders() == []


def test_waiting_is_counted_when_decoding_is_slow_and_not_when_it_is_ahead(val_split: PreparedSplit) -> None:
    def waits(before: Callable[[int], None], work: float) -> float:
        jobs = Watch(before).over(val_jobs(CONFIG, val_split, rank=0, world=1))
        with Loader(jobs, max_images=4, max_pixels=32, workers=1, device=CPU) as loader:
            assert loader.wait_seconds == 0
            for _ in loader:
                time.sleep(work)
            return loader.wait_seconds

    assert waits(lambda index: time.sleep(0.01), work=0.0) >= 15 * 0.01 * 0.9
    assert waits(lambda index: None, work=0.03) < 15 * 0.01 * 0.9


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
    copies, wanted = Copies((64, 40), (64,), 90), {"train": config.resolutions(), "val": frozenset({48})}
    source = image_folder(tmp_path / "folder", train=8, val=2, side=96)
    result = prepare(str(source), open_store(s3_uri), copies)
    folder = stage(f"{s3_uri}/{result.prefix}", tmp_path / "scratch", copies, wanted)
    staged = {path.name for path in folder.glob("*.arrow")}
    assert staged == {"train-40px-00000.arrow", "val-64px-00000.arrow"} | (
        {"train-64px-00000.arrow"} if epochs == 3 else set()
    )
    found = Data(folder, read_index(folder))
    jobs = train_jobs(
        config, lambda pixels: found.open("train", pixels), Clock.of(config, 24).resolution,
        images=24, rank=0, world=1, first_step=0, steps=3 * epochs,
    )  # fmt: skip
    sizes = {(job.split.short_side, job.pixels) for job in jobs}
    assert sizes == ({(40, 32), (64, 48)} if epochs == 3 else {(40, 32)})
    if epochs == 3:
        assert found.open("train", 40) is found.open("train", 48)
    assert found.open("val", 48).short_side == 64
