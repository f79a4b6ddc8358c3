"""Images into shards, part by part: converted by a pool of threads, written one part behind.

Which parts there are and what is in them depends on the source and the options alone, not on the number of threads.
A shard counts as there once the small file beside it is. The index and what is said about the whole are made in
`prepare`.
"""

from __future__ import annotations

import json
import time
import zlib
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np

from trainer.data.format import Copies, ImageRow, Shard, Tally, read_tally, write_shard
from trainer.data.making.convert import BrokenImageError, convert
from trainer.data.making.sources import Source, Split
from trainer.data.progress import Track, show_rate
from trainer.store import NotFoundError, ObjectStore
from trainer.store.background import in_background
from trainer.text import say, show_bytes, show_estimate

SHARD_PIXELS = 2**28  # short side squared, times images: 128 MB, since a photograph takes half a byte per pixel
SMALL_SIDE = 64  # below, headers and names count more than pixels
ESTIMATE_FROM = 5000  # images
ESTIMATE_SAMPLE = 256  # images of each split
ESTIMATE_RUNS = 4  # of consecutive images, where only those are quickly read
NOTE = ".json"  # after a shard's name: the file beside it


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
class Made:
    """A shard as it was made. The file beside it, written after it, says so: a later call need not read the shard."""

    shard: Shard
    tally: Tally

    def to_json(self) -> str:
        labels = [label for batch in self.tally.labels for label in batch.tolist()]
        tally = {"labels": labels, "odd": self.tally.odd, "broken": self.tally.broken}
        return json.dumps({**asdict(self.shard), **tally}) + "\n"

    @classmethod
    def from_json(cls, text: bytes) -> Made:
        """ValueError, TypeError, KeyError or AttributeError if this is not what `to_json` wrote."""
        raw = json.loads(text)
        labels, odd, broken = raw.pop("labels"), raw.pop("odd"), raw.pop("broken")
        shard = Shard(**raw)
        if {type(n) for n in (shard.images, shard.bytes, shard.crc32, *labels)} != {int} or shard.images != len(labels):
            raise ValueError(f"{shard} with {len(labels)} labels: these are no counts, or differ")
        return cls(shard, Tally(shard.images, [np.array(labels, np.int64)], Counter(odd), broken))


@dataclass(frozen=True)
class Written:
    """A part in the store."""

    split: str
    shards: tuple[Shard, ...]  # one for each short side
    tally: Tally


@dataclass(frozen=True)
class ShardMaker:
    """One call's work: where the images come from, what becomes of them, where they go, and who does it."""

    source: Source
    store: ObjectStore
    prefix: str
    copies: Copies
    there: Collection[str]  # shards that an earlier call has written
    workers: int
    pool: ThreadPoolExecutor

    def run(self, parts: Iterable[Part], track: Track) -> Iterator[Written]:
        """The parts in order. While one is written the next is converted; what fails in writing is raised here.

        Whoever stops before the end, by an error or an interruption, does not wait for the part that is being written.
        """
        writing: Future[Written] | None = None
        for part in parts:
            kept = [self._kept(file) for file in part.files]
            rows: list[list[ImageRow]] = []  # of each copy; none where every shard is there
            if all(kept):
                track.add(len(part.images), skipped=True)
            else:
                rows = [[] for _ in part.files]
                for image in self._converted(part.split, part.images):
                    for copy, row in zip(rows, image, strict=True):
                        copy.append(row)
                    track.add(1)
            if writing:
                yield writing.result()
            writing = in_background(partial(self._write, part, kept, rows))
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
            f"{show_estimate(seconds)} at {show_rate(todo.total(), seconds, self.workers)}"
        )

    def _converted(self, split: str, numbers: Iterable[int]) -> Iterator[tuple[ImageRow, ...]]:
        """A row for each copy of each image, in order; few images are in work at a time, so that memory is bounded."""
        images, sides = self.source.splits[split], self.copies.sides(split)

        def one(i: int) -> tuple[ImageRow, ...]:
            try:
                example = images[i]
            except (FileNotFoundError, PermissionError) as error:  # other faults are the disk's, not the image's
                return (ImageRow(f"image {i}", int(images.labels[i]), None, (), str(error)),) * len(sides)
            try:
                jpegs, odd = convert(example.image, example.name, sides, self.copies.quality)
            except BrokenImageError as error:
                return (ImageRow(example.name, example.label, None, (), str(error)),) * len(sides)
            return tuple(ImageRow(example.name, example.label, jpeg, odd) for jpeg in jpegs)

        pending: deque[Future[tuple[ImageRow, ...]]] = deque()
        for i in numbers:
            pending.append(self.pool.submit(one, i))
            if len(pending) >= 4 * self.workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def _write(self, part: Part, kept: list[Made | None], rows: list[list[ImageRow]]) -> Written:
        """Put the shards of a part that are not there; `rows` is emptied, copy by copy, to free its memory."""
        made = []
        for file, shard in zip(part.files, kept, strict=True):
            copy = rows.pop(0) if rows else []
            made.append(shard or self._kept(file) or self._make(file, copy))
        return Written(part.split, tuple(one.shard for one in made), made[0].tally)  # the same in every copy

    def _make(self, file: str, rows: list[ImageRow]) -> Made:
        key = f"{self.prefix}/{file}"
        body = write_shard(self.source.classes, rows)
        rows.clear()
        tally = read_tally(body, self.store.describe(key))
        made = Made(Shard(file, tally.images, len(body), zlib.crc32(body)), tally)
        self.store.put(key, body)
        self.store.put(key + NOTE, made.to_json().encode())
        return made

    def _kept(self, file: str) -> Made | None:
        """What an earlier call has made, or another preparation meanwhile: if the file beside the shard says so, and
        the shard has the size that it says. Else it is made again: the bytes will be the same.

        The shard itself is not read, that would be a download of everything. One that was damaged since is found when
        it is staged: the index has the checksum of the bytes that were made.
        """
        key = f"{self.prefix}/{file}"
        try:
            made = Made.from_json(self.store.get(key + NOTE))
            found = self.store.info(key).bytes
        except NotFoundError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            say(f"{self.store.describe(key + NOTE)} is damaged ({error}): making the shard again")
            return None
        if (made.shard.file, made.shard.bytes) != (file, found):
            say(f"{self.store.describe(key)} has {found} bytes, not as {file}{NOTE} says: making it again")
            return None
        if file not in self.there:
            say(f"{file}: another preparation has written it meanwhile; taken over")
        return made


def _sample(images: Split) -> list[int]:
    """Images from all over a split, or in a few runs if only those are quickly read."""
    runs = ESTIMATE_RUNS if images.in_runs else ESTIMATE_SAMPLE
    firsts = np.linspace(0, max(0, len(images) - ESTIMATE_SAMPLE // runs), runs).astype(int)
    numbers = {int(first) + i for first in firsts for i in range(ESTIMATE_SAMPLE // runs)}
    return sorted(i for i in numbers if i < len(images))
