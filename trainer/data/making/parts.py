"""Makes shards from images, part by part: a pool of threads converts one part while the last one is written.

The parts and their contents depend on the source and the options alone, not on the number of threads. A shard counts
once the small file beside it exists. `prepare` makes the index and the summary.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
import zlib
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np

from trainer.data.format import Copies, ImageRow, Shard, Tally, read_tally, write_shard
from trainer.data.making.convert import BrokenImageError, convert
from trainer.data.making.faults import as_user_error
from trainer.data.making.forms.sources import Source, Split
from trainer.data.making.revision.manifest import Watch
from trainer.data.progress import Track, show_rate
from trainer.store import READ_BYTES, NotFoundError, ObjectStore
from trainer.store.background import in_background
from trainer.store.creation import write_new
from trainer.text import say, show_bytes, show_estimate, show_name
from trainer.values import as_list, as_object, as_text, as_whole, parse_object

SHARD_PIXELS = 2**28  # short side squared, times images: 128 MB, since a photograph takes half a byte per pixel
SMALL_SIDE = 64  # of smaller images, headers and names take more room than pixels
ESTIMATE_FROM = 5000  # images: for fewer there is no estimate
ESTIMATE_SAMPLE = 256  # images of each split
ESTIMATE_RUNS = 4  # groups of consecutive images, for a source that reads only those quickly
NOTE = ".json"  # after a shard's name: the file beside it


def default_images(sides: Sequence[int]) -> int:
    """How many images a shard has: about 128 MB of the largest copy."""
    return max(1, SHARD_PIXELS // max(SMALL_SIDE, *sides) ** 2)


@dataclass(frozen=True)
class Part:
    """Consecutive images of a split. Each of their copies goes into one shard."""

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
    """A shard as it was made. The small file beside it has the same facts, so a later call need not read the shard."""

    shard: Shard
    tally: Tally

    def to_json(self) -> str:
        labels = [label for batch in self.tally.labels for label in batch.tolist()]
        hashes = base64.b64encode(np.concatenate(self.tally.hashes).astype("<u8").tobytes()).decode()
        tally = {"labels": labels, "odd": self.tally.odd, "broken": self.tally.broken, "hashes": hashes}
        return json.dumps({**asdict(self.shard), **tally}) + "\n"

    @classmethod
    def from_json(cls, text: bytes, classes: int) -> Made:
        """Raises ValueError, TypeError or KeyError if `to_json` did not write this of a shard with so many classes."""
        raw = parse_object(text)
        labels = [as_whole("a label", label, classes - 1) for label in as_list("labels", raw.pop("labels"))]
        broken = [as_text("broken", line) for line in as_list("broken", raw.pop("broken"))]
        odd = {kind: as_whole(kind, count) for kind, count in as_object("odd", raw.pop("odd")).items()}
        hashes = np.frombuffer(base64.b64decode(raw.pop("hashes"), validate=True), "<u8").astype(np.uint64)
        shard = Shard.from_json(raw)
        if shard.images != len(labels) or len(hashes) != len(labels) + len(broken):
            raise ValueError(f"{shard} with {len(labels)} labels and {len(hashes)} hashes: these differ")
        return cls(shard, Tally(shard.images, [np.array(labels, np.int64)], Counter(odd), broken, [hashes]))


@dataclass(frozen=True)
class Written:
    """A part that is in the store."""

    split: str
    shards: tuple[Shard, ...]  # one for each short side
    tally: Tally


@dataclass(frozen=True)
class ShardMaker:
    """The work of one preparation: its source, the copies that it makes, where they go, and its threads."""

    source: Source
    store: ObjectStore
    prefix: str
    copies: Copies
    there: Collection[str]  # shards that an earlier call has written
    workers: int
    pool: ThreadPoolExecutor
    watch: Watch | None = None  # a part whose files have changed since they were hashed is not stored

    def run(self, parts: Iterable[Part], track: Track) -> Iterator[Written]:
        """Make the parts in order. One is converted while the last one is written. A failed write is raised here.

        A caller that stops early, by an error or an interruption, does not wait for the part that is being written.
        """
        writing: Future[Written] | None = None
        for part in parts:
            kept = [self._kept(file) for file in part.files]
            rows: list[list[ImageRow]] = []  # for each copy; empty if every shard exists
            if all(kept):
                track.add(len(part.images), skipped=True)
            else:
                rows = [[] for _ in part.files]
                for image in self._converted(part.split, part.images):
                    for copy, row in zip(rows, image, strict=True):
                        copy.append(row)
                    track.add(1)
                if self.watch:
                    self.watch.check(part.split, part.images, len(self.source.splits[part.split]))
            if writing:
                yield writing.result()
            writing = in_background(partial(self._write, part, kept, rows))
        if writing:
            yield writing.result()

    def estimate(self, parts: Iterable[Part]) -> None:
        """Estimate from a sample how long the parts take and how large they get. For few images, say nothing."""
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
        """A row for each copy of each image, in order. Few images are in memory at a time."""
        images, sides = self.source.splits[split], self.copies.sides(split)

        def one(i: int) -> tuple[ImageRow, ...]:
            name, label = f"image {i}", int(images.labels[i])
            try:
                example = images[i]
                name = show_name(example.name)
                jpegs, odd = convert(example.image, name, sides, self.copies.quality)
            except BrokenImageError as error:
                return (ImageRow(name, label, None, (), show_name(str(error))),) * len(sides)
            except (OSError, MemoryError) as error:
                raise as_user_error(error, name) from error
            found = int.from_bytes(hashlib.sha256(example.image).digest()[:8], "little")
            return tuple(ImageRow(name, label, jpeg, odd, hash=found) for jpeg in jpegs)

        pending: deque[Future[tuple[ImageRow, ...]]] = deque()
        for i in numbers:
            pending.append(self.pool.submit(one, i))
            if len(pending) >= 4 * self.workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def _write(self, part: Part, kept: list[Made | None], rows: list[list[ImageRow]]) -> Written:
        """Store the missing shards of a part. `rows` is emptied copy by copy, to free its memory."""
        made = []
        for file, shard in zip(part.files, kept, strict=True):
            copy = rows.pop(0) if rows else []
            made.append(shard or self._kept(file) or self._make(file, copy))
        return Written(part.split, tuple(one.shard for one in made), made[0].tally)  # the same in every copy

    def _make(self, file: str, rows: list[ImageRow]) -> Made:
        key = f"{self.prefix}/{file}"
        body = write_shard(self.source.classes, rows)
        hashes = np.array([row.hash for row in rows], np.uint64)
        rows.clear()
        tally = replace(read_tally(body, self.store.describe(key)), hashes=[hashes])
        sums = zlib.crc32(body), hashlib.sha256(body).hexdigest()
        made = Made(Shard(file, tally.images, len(body), *sums), tally)
        write_new(self.store, key, body)
        write_new(self.store, key + NOTE, made.to_json().encode())
        return made

    def _kept(self, file: str) -> Made | None:
        """A shard that exists: an earlier call has made it, or another preparation meanwhile.

        It counts if the small file beside it has its facts, and if its size is right. Else it is made again, with the
        same bytes. The shard itself is not read, since that would download everything. Later damage is found by
        staging: the index has the checksum of the bytes that were made.
        """
        key = f"{self.prefix}/{file}"
        try:
            made = Made.from_json(self.store.get(key + NOTE), len(self.source.classes))
            found = self.store.info(key).bytes
        except NotFoundError:
            return None
        except (ValueError, TypeError, KeyError) as error:
            say(f"{self.store.describe(key + NOTE)} is damaged ({error}): making the shard again")
            return None
        if (made.shard.file, made.shard.bytes) != (file, found):
            say(f"{self.store.describe(key)} has {found} bytes, not as {file}{NOTE} says: making it again")
            return None
        if not made.shard.sha256:
            say(f"{self.store.describe(key)} was made by an older version, without SHA-256: reading it")
            return self._hashed(key, made)
        if file not in self.there:
            say(f"{file}: another preparation has written it meanwhile; taken over")
        return made

    def _hashed(self, key: str, made: Made) -> Made | None:
        """The shard with its SHA-256; None if its bytes are not those that the older version made."""
        crc32, sha256 = 0, hashlib.sha256()
        for piece in self.store.stream(key, 0, made.shard.bytes, memoryview(bytearray(READ_BYTES))):
            crc32 = zlib.crc32(piece, crc32)
            sha256.update(piece)
        if crc32 != made.shard.crc32:
            say(
                f"{self.store.describe(key)} has checksum {crc32}, not as {made.shard.file}{NOTE} says: making it again"
            )
            return None
        return replace(made, shard=replace(made.shard, sha256=sha256.hexdigest()))


def _sample(images: Split) -> list[int]:
    """Images from all over a split, or a few groups of consecutive ones if only those are read quickly."""
    runs = ESTIMATE_RUNS if images.in_runs else ESTIMATE_SAMPLE
    firsts = np.linspace(0, max(0, len(images) - ESTIMATE_SAMPLE // runs), runs).astype(int)
    numbers = {int(first) + i for first in firsts for i in range(ESTIMATE_SAMPLE // runs)}
    return sorted(i for i in numbers if i < len(images))
