"""Batches, decoded ahead of the training step by a pool of threads into preallocated uint8 buffers.

The threads run C code that releases the interpreter lock. `order` decides which images a batch has, and `augment` what
happens to the pixels on the device.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from trainer.data.augment.batch import draws_per_image
from trainer.data.reading.copies import find_crop, likely_copies
from trainer.data.reading.decode import Picture, center_into, crop_into, cut_out, pictures_into
from trainer.data.reading.order import AUGMENT, CROP, CROP_DRAWS, draws, epoch_visits, image_of, micro_batches
from trainer.data.reading.split import EncodedImages, PreparedSplit
from trainer.recipes.config import Config

DECODE_NICENESS = 5  # more than the training thread's; on Linux each thread has its own
CHUNK_IMAGES = 8  # images that a task decodes: few enough to share out evenly, enough to make the queue's cost small


@dataclass(frozen=True)
class Batch:
    """One micro-batch on the device, valid until the next one is asked for."""

    images: Tensor  # (N, pixels, pixels, 3) uint8; of `picture_jobs`: (N, bytes), which `pictures_of` takes apart
    labels: Tensor  # (N,) int64
    flips: Tensor  # (N,) bool
    draws: np.ndarray  # (N, draws_per_image) float64 in [0, 1), on the host: for the policies of `augment`


@dataclass(frozen=True)
class Job:
    """A batch to be made. `write(out, row)` decodes one image into an array of this shape, uint8."""

    split: EncodedImages  # the smallest copy that its images are read from
    indices: np.ndarray  # (N,) int64
    shape: tuple[int, ...]  # (pixels, pixels, 3), or (bytes,)
    prefetch: Callable[[], None]  # asks the system for what `write` will read
    write: Callable[[np.ndarray, int], None]
    flips: np.ndarray  # (N,) bool
    draws: np.ndarray  # (N, draws_per_image) float64


def train_jobs(
    config: Config,
    open_copies: Callable[[int], tuple[PreparedSplit, ...]],
    resolution: Callable[[int], int],
    *,
    images: int,
    rank: int,
    world: int,
    first_step: int,
    steps: int,
) -> Iterator[Job]:
    """This process's micro-batches of steps first_step … steps - 1, in order.

    `open_copies(pixels)` gives the stored copies for a resolution, the smallest first: each crop is read from one of
    them. `resolution(step)` gives the pixels of a step's images.
    """
    mine = config.micro_batches_of(rank, world)
    per_epoch = images // config.global_batch_size
    order, order_epoch = np.empty(0, np.int64), -1
    for step in range(first_step, steps):
        epoch, pixels = step // per_epoch, resolution(step)
        copies = open_copies(pixels)
        if epoch != order_epoch:
            order, order_epoch = epoch_visits(config, epoch, copies[0].labels), epoch
        rows = micro_batches(order, step % per_epoch, config.global_batch_size, config.device_batch_size)
        for visits in rows[mine]:
            yield _train_job(config, copies, visits, pixels, epoch)


def _train_job(config: Config, copies: tuple[PreparedSplit, ...], visits: np.ndarray, pixels: int, epoch: int) -> Job:
    data, indices = config.data, image_of(visits)
    uniform = draws(CROP, config.seed, epoch, visits, CROP_DRAWS)
    flips, crops = uniform[:, 0] < data.flip_probability, uniform[:, 1:]
    likely = likely_copies(copies, pixels, crops, data)

    def prefetch() -> None:
        for number, copy in enumerate(copies):
            copy.prefetch(indices[likely == number])

    def write(out: np.ndarray, row: int) -> None:
        jpeg, box = find_crop(copies, int(likely[row]), int(indices[row]), pixels, crops[row].tolist(), data)
        crop_into(out, jpeg, box)

    policy = draws(AUGMENT, config.seed, epoch, visits, draws_per_image(config.regularize))
    return Job(copies[0], indices, (pixels, pixels, 3), prefetch, write, flips, policy)


def val_jobs(config: Config, split: PreparedSplit, *, rank: int, world: int) -> Iterator[Job]:
    """Every image exactly once over all ranks; the last batch may be smaller."""
    side, resize = config.data.val_crop, config.data.val_resize

    def write(out: np.ndarray, image: int) -> None:
        center_into(out, split.jpeg(image), resize)

    return _jobs_in_order(config.val_batch_size, split, (side, side, 3), write, rank, world)


def picture_jobs(
    batch_size: int, split: EncodedImages, pictures: Sequence[Picture], *, rank: int, world: int
) -> Iterator[Job]:
    """As `val_jobs`, with several pictures of each image, which is decoded once."""

    def write(out: np.ndarray, image: int) -> None:
        outs = [part[0] for part in pictures_of(out[None], pictures)]
        try:
            pictures_into(outs, split.jpeg(image), pictures)
        except ValueError as error:
            cut_out(outs, split.pixels(image, error), pictures)

    return _jobs_in_order(batch_size, split, (sum(picture.bytes for picture in pictures),), write, rank, world)


Flat = TypeVar("Flat", np.ndarray, Tensor)


def pictures_of(rows: Flat, pictures: Sequence[Picture]) -> list[Flat]:
    """(N, bytes) uint8 as an (N, crop, crop, 3) for each picture, in the same memory."""
    ends = np.cumsum([picture.bytes for picture in pictures]).tolist()
    return [
        rows[:, end - picture.bytes : end].reshape(len(rows), picture.crop, picture.crop, 3)
        for end, picture in zip(ends, pictures, strict=True)
    ]


def _jobs_in_order(
    batch_size: int, split: EncodedImages, shape: tuple[int, ...], write: Callable[[np.ndarray, int], None],
    rank: int, world: int,
) -> Iterator[Job]:  # fmt: skip
    """Every image exactly once over all ranks. `write(out, image)` decodes the image of this number."""
    mine = np.arange(rank, len(split), world)
    for start in range(0, len(mine), batch_size):
        indices = mine[start : start + batch_size]

        def write_row(out: np.ndarray, row: int, indices: np.ndarray = indices) -> None:
            write(out, int(indices[row]))

        plain = np.zeros(len(indices), np.bool_), np.empty((len(indices), 0))
        yield Job(split, indices, shape, partial(split.prefetch, indices), write_row, *plain)


class Slot:
    """Host memory of one batch, pinned where there is a GPU, and the event after which it may be overwritten."""

    def __init__(self, images: int, image_bytes: int, pinned: bool):
        self.pixels = torch.empty(images * image_bytes, dtype=torch.uint8, pin_memory=pinned)
        self.flips = torch.empty(images, dtype=torch.bool, pin_memory=pinned)
        self.labels = torch.empty(images, dtype=torch.int64, pin_memory=pinned)
        self.copied: torch.cuda.Event | None = None

    def images(self, count: int, shape: tuple[int, ...]) -> Tensor:
        return self.pixels[: count * math.prod(shape)].view(count, *shape)


class Loader:
    """Iterates over the batches of `jobs` in order. Close it, or use it as a context manager, to end its threads.

    No batch has more than `max_images`, and no image more than `image_bytes`, as `Job.shape` counts them.
    An image that cannot be decoded raises RuntimeError with its split and number. `wait_seconds` is the time the
    consumer spent waiting for data.
    """

    DEPTH = 3  # batches in memory: one in use, two being filled
    LEAD = 4  # batches that the host may be ahead of the GPU: enough to keep it busy, few enough for its memory

    def __init__(
        self, jobs: Iterable[Job], *, max_images: int, image_bytes: int, workers: int, device: torch.device
    ) -> None:  # fmt: skip
        self.jobs, self.device, self.wait_seconds = iter(jobs), device, 0.0
        threads = workers or len(os.sched_getaffinity(0))
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="decode", initializer=_step_back)
        cuda = device.type == "cuda"
        self.slots = deque(Slot(max_images, image_bytes, pinned=cuda) for _ in range(self.DEPTH))
        self.filling: deque[tuple[Job, Slot, list[Future[None]]]] = deque()
        self.stream = torch.cuda.Stream(device) if cuda else None  # type: ignore[no-untyped-call]
        self.given: deque[torch.cuda.Event] = deque()  # each behind the steps before a batch

    def __iter__(self) -> Iterator[Batch]:
        while True:
            self._fill()
            if not self.filling:
                return
            job, slot, futures = self.filling.popleft()
            started = time.perf_counter()
            for future in futures:
                future.result()
            self.wait_seconds += time.perf_counter() - started
            yield self._to_device(job, slot)
            self.slots.append(slot)  # the consumer is done with it: it asks for the next one

    def _fill(self) -> None:
        """Start decoding into every free slot."""
        while self.slots and (job := next(self.jobs, None)) is not None:
            slot = self.slots.popleft()
            if slot.copied is not None:
                slot.copied.synchronize()
            count = len(job.indices)
            slot.labels[:count] = torch.from_numpy(job.split.labels[job.indices])
            slot.flips[:count] = torch.from_numpy(job.flips)
            job.prefetch()
            chunks = range(0, count, CHUNK_IMAGES)
            self.filling.append((job, slot, [self.pool.submit(_decode_chunk, job, slot, start) for start in chunks]))

    def _to_device(self, job: Job, slot: Slot) -> Batch:
        count = len(job.indices)
        host = Batch(slot.images(count, job.shape), slot.labels[:count], slot.flips[:count], job.draws)
        if self.stream is None:
            return host
        with torch.cuda.stream(self.stream):
            images, labels, flips = (
                tensor.to(self.device, non_blocking=True) for tensor in (host.images, host.labels, host.flips)
            )
            batch = Batch(images, labels, flips, job.draws)
            slot.copied = self.stream.record_event()
        current = torch.cuda.current_stream(self.device)
        current.wait_event(slot.copied)
        for tensor in (batch.images, batch.labels, batch.flips):
            tensor.record_stream(current)  # allocated on the side stream, used on this one
        self._keep_pace(current)
        return batch

    def _keep_pace(self, stream: torch.cuda.Stream) -> None:
        """Wait until the GPU is at most LEAD batches behind. Each of them holds its images there."""
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # who waits leaves the core to others
        self.given.append(stream.record_event(event))
        if len(self.given) > self.LEAD:
            self.given.popleft().synchronize()

    def close(self) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _step_back() -> None:
    """Let the thread that launches the GPU's work go before this one, where there are fewer cores than threads."""
    with suppress(OSError):  # a sandbox may refuse: then all are equal
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + DECODE_NICENESS)


def _decode_chunk(job: Job, slot: Slot, start: int) -> None:
    images = slot.images(len(job.indices), job.shape).numpy()
    for row in range(start, min(start + CHUNK_IMAGES, len(job.indices))):
        try:
            job.write(images[row], row)
        except Exception as error:
            index = int(job.indices[row])
            raise RuntimeError(
                f"image {index} of {job.split.split} ({job.split.name(index)}) cannot be decoded: {error}"
            ) from error
