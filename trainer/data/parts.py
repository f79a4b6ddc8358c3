"""Images into shards, part by part: converted by a pool of threads, written one part behind.

Which parts there are and what is in them depends on the source and the options alone, not on the number of threads.
The index and what is said about the whole are made in `prepare`.
"""

from __future__ import annotations

import time
import zlib
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from trainer.contract import UserError
from trainer.data.convert import BrokenImageError, convert
from trainer.data.progress import Track, say, show_bytes, show_duration, show_rate
from trainer.data.shards import Copies, Row, Shard, Tally, read_tally, write_shard
from trainer.data.sources import Source, Split
from trainer.store import NotFoundError, ObjectStore

SHARD_PIXELS = 2**28  # short side squared, times images: 128 MB, since a photograph takes half a byte per pixel
SMALL_SIDE = 64  # below, headers and names count more than pixels
ESTIMATE_FROM = 5000  # images
ESTIMATE_SAMPLE = 256  # images of each split
ESTIMATE_RUNS = 4  # of consecutive images, where only those are quickly read


def default_images(sides: Sequence[int]) -> int:
    """About 128 MB for the largest copy."""
    return max(1, SHARD_PIXELS // max(SMALL_SIDE, *sides) ** 2)


@dataclass(frozen=True)
class Part:
    """Consecutive images of a split: those of one shard of each copy."""

    split: str
    images: range
    files: tuple[str, ...]  # one for each short side


def parts_of(source: Source, per_shard: dict[str, int], copies: Copies) -> Iterator[Part]:
    for split, images in source.splits.items():
        for number, first in enumerate(range(0, len(images), per_shard[split])):
            files = tuple(f"{split}-{side}px-{number:05d}.arrow" for side in copies.sides(split))
            yield Part(split, range(first, min(first + per_shard[split], len(images))), files)


@dataclass(frozen=True)
class Written:
    """A part in the store."""

    split: str
    shards: tuple[Shard, ...]  # one for each short side
    tally: Tally


@dataclass(frozen=True)
class Job:
    """One call's work: where the images come from, what becomes of them, where they go, and who does it."""

    source: Source
    store: ObjectStore
    prefix: str
    copies: Copies
    there: Collection[str]  # files that an earlier call has written
    workers: int
    pool: ThreadPoolExecutor
    writer: ThreadPoolExecutor  # of one thread

    def run(self, parts: Iterable[Part], track: Track) -> Iterator[Written]:
        """The parts in order. While one is written the next is converted; what fails in writing is raised here."""
        writing: Future[Written] | None = None
        for part in parts:
            rows: list[list[Row]] = []  # of each copy; none where every shard is there
            if all(self._is_there(file) for file in part.files):
                track.add(len(part.images), skipped=True)
            else:
                rows = [[] for _ in part.files]
                for image in self._converted(part.split, part.images):
                    for copy, row in zip(rows, image, strict=True):
                        copy.append(row)
                    track.add(1)
            if writing:
                yield writing.result()
            writing = self.writer.submit(self._write, part, rows)
        if writing:
            yield writing.result()

    def estimate(self, parts: Iterable[Part]) -> None:
        """Say how long the parts will take and how large they get, from a sample; for few images say nothing."""
        todo = Counter[str]()
        for part in parts:
            todo[part.split] += len(part.images)
        if todo.total() < ESTIMATE_FROM:
            return
        seconds = size = 0.0
        for split, count in todo.items():
            sample, start = _sample(self.source.splits[split]), time.monotonic()
            found = sum(len(row.jpeg or b"") for image in self._converted(split, sample) for row in image)
            seconds += (time.monotonic() - start) * count / len(sample)
            size += found * count / len(sample)
        say(
            f"estimate: {todo.total():,} images, about {show_bytes(size)} in {self.store.describe(self.prefix)}, about "
            f"{show_duration(seconds)} at {show_rate(todo.total(), seconds, self.workers)}"
        )

    def _converted(self, split: str, numbers: Iterable[int]) -> Iterator[tuple[Row, ...]]:
        """A row for each copy of each image, in order; few images are in work at a time, so that memory is bounded."""
        images, sides = self.source.splits[split], self.copies.sides(split)

        def one(i: int) -> tuple[Row, ...]:
            try:
                example = images[i]
            except (FileNotFoundError, PermissionError) as error:  # other faults are the disk's, not the image's
                return (Row(f"image {i}", int(images.labels[i]), None, (), str(error)),) * len(sides)
            try:
                jpegs, odd = convert(example.image, example.name, sides, self.copies.quality)
            except BrokenImageError as error:
                return (Row(example.name, example.label, None, (), str(error)),) * len(sides)
            return tuple(Row(example.name, example.label, jpeg, odd) for jpeg in jpegs)

        pending: deque[Future[tuple[Row, ...]]] = deque()
        for i in numbers:
            pending.append(self.pool.submit(one, i))
            if len(pending) >= 4 * self.workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def _write(self, part: Part, rows: list[list[Row]]) -> Written:
        """Put the shards of a part that are not there; `rows` is emptied, copy by copy, to free its memory."""
        shards, tally = [], Tally()
        for file in part.files:
            key, copy = f"{self.prefix}/{file}", rows.pop(0) if rows else None
            if copy is None or self._is_there(file):
                body = self.store.get(key)
                if file not in self.there:
                    say(f"{file}: another preparation has written it meanwhile; taken over")
            else:
                body = write_shard(self.source.classes, copy)
                del copy
                self.store.put(key, body)
            tally = read_tally(body, self.store.describe(key))  # the same in every copy
            if (found := tally.images + len(tally.broken)) != len(part.images):
                raise UserError(
                    f"{self.store.describe(key)} tells of {found} images, not {len(part.images)}: remove it and run "
                    "`make prepare` again"
                )
            shards.append(Shard(file, tally.images, len(body), zlib.crc32(body)))
        return Written(part.split, tuple(shards), tally)

    def _is_there(self, file: str) -> bool:
        if file in self.there:
            return True
        try:
            self.store.head(f"{self.prefix}/{file}")
        except NotFoundError:
            return False
        return True


def _sample(images: Split) -> list[int]:
    """Images from all over a split, or in a few runs if only those are quickly read."""
    runs = ESTIMATE_RUNS if images.in_runs else ESTIMATE_SAMPLE
    firsts = np.linspace(0, max(0, len(images) - ESTIMATE_SAMPLE // runs), runs).astype(int)
    numbers = {int(first) + i for first in firsts for i in range(ESTIMATE_SAMPLE // runs)}
    return sorted(i for i in numbers if i < len(images))
