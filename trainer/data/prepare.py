"""From DATA= to the prepared form: `datasets/<name>/<version>/` of a store.

Every image is decoded once, by a pool of threads; what is done to one image is in `convert`. The bytes written depend
on the source and the options alone, not on the number of workers.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from trainer.contract import UserError, dataset_key
from trainer.data.convert import BrokenImageError, convert
from trainer.data.progress import Track, say
from trainer.data.shards import INDEX, Copies, Index, Row, Shard, Size, SplitIndex, Tally, read_tally, write_shard
from trainer.data.sources import Split, identify, open_source
from trainer.store import NotFoundError, ObjectStore

Progress = Callable[[int], None]  # told how many more images, or bytes, are done

BROKEN_NAMED = 10


@dataclass(frozen=True)
class Prepared:
    prefix: str  # of the store: datasets/<name>/<version>
    index: Index


def prepare(
    data: str,
    store: ObjectStore,
    copies: Copies,
    *,
    secrets_dir: str = "",
    workers: int = 0,
    max_broken_share: float = 0.001,
    images_per_shard: int = 0,
    progress: Progress | None = None,
) -> Prepared:
    """Write the shards, then the index; where the index is, do nothing. Shards that are already there are kept.

    `workers` and `images_per_shard` of 0 mean all cores, and about 256 MB; in memory are one shard and a few images.
    """
    short_side, quality = copies.train[0], copies.quality  # TODO: every copy
    _check_options(short_side, quality, max_broken_share)
    name, identity = identify(data)
    images_per_shard = images_per_shard or max(1, 2**29 // short_side**2)  # a photograph takes half a byte per pixel
    prefix = _prefix(name, identity, short_side, quality, images_per_shard)
    where = store.describe(prefix)
    if index := _finished(store, prefix):
        say(f"{name}: already prepared in {where}")
        return Prepared(prefix, index)

    source = open_source(data, secrets_dir=secrets_dir)
    total = sum(len(split) for split in source.splits.values())
    there = {info.key for info in store.list(f"{prefix}/")}
    workers = workers or os.cpu_count() or 1
    tallies = {split: Tally() for split in source.splits}
    shards: dict[str, list[Shard]] = {split: [] for split in source.splits}
    pool = ThreadPoolExecutor(workers, thread_name_prefix="prepare")
    try:
        with Track(total, "images", f"preparing {name}", progress) as track:
            for split, images in source.splits.items():
                for first in range(0, len(images), images_per_shard):
                    numbers = range(first, min(first + images_per_shard, len(images)))
                    file = f"{split}-{short_side}px-{len(shards[split]):05d}.arrow"
                    key = f"{prefix}/{file}"
                    if key in there:  # put whole by an earlier call
                        body = store.get(key)
                        track.add(len(numbers))
                    else:
                        rows = _converted(pool, 4 * workers, images, numbers, short_side, quality)
                        body = write_shard(source.classes, _counted(rows, track))
                        store.put(key, body)
                    tally = read_tally(body, store.describe(key))
                    shards[split].append(Shard(file, tally.images, len(body), zlib.crc32(body)))
                    tallies[split].add(tally)
                    _check_broken(name, tallies, total, max_broken_share)
    finally:
        pool.shutdown(cancel_futures=True)

    splits = {
        split: SplitIndex(tally.images, (Size(short_side, quality, tuple(shards[split])),))
        for split, tally in tallies.items()
    }
    version = prefix.rpartition("/")[2]
    index = Index(name, version, source.classes, splits, _fingerprint(source.classes, shards, tallies))
    store.put(f"{prefix}/{INDEX}", index.to_json().encode())
    say(_summary(name, where, index, tallies))
    return Prepared(prefix, index)


def _check_options(short_side: int, quality: int, max_broken_share: float) -> None:
    if short_side < 8:
        raise UserError(f"short side {short_side} is too small: use pixels, 8 or more; 256 serves training up to 224")
    if not 1 <= quality <= 95:
        raise UserError(f"quality {quality} is not a JPEG quality: use 1 to 95; 90 is the default")
    if not 0 <= max_broken_share < 1:
        raise UserError(f"max broken share {max_broken_share} is not a share: use 0 to 1, for example 0.001")


def _prefix(name: str, identity: str, short_side: int, quality: int, images_per_shard: int) -> str:
    """`datasets/<name>/<version>`: the version tells people the options, and hashes all that decides the content."""
    digest = hashlib.sha256(json.dumps([identity, short_side, quality, images_per_shard]).encode()).hexdigest()[:12]
    return dataset_key(name, f"{short_side}px-q{quality}-{digest}", "").rstrip("/")


def _finished(store: ObjectStore, prefix: str) -> Index | None:
    key = f"{prefix}/{INDEX}"
    try:
        return Index.from_json(store.get(key), store.describe(key))
    except NotFoundError:
        return None


def _converted(
    pool: ThreadPoolExecutor, window: int, images: Split, numbers: range, short_side: int, quality: int
) -> Iterator[Row]:
    """The rows in order; at most `window` images are in work, so that memory is bounded."""

    def one(i: int) -> Row:
        try:
            example = images[i]
        except (FileNotFoundError, PermissionError) as error:  # other faults are the disk's, not the image's
            return Row(f"image {i}", int(images.labels[i]), None, (), str(error))
        try:
            jpeg, odd = convert(example.image, example.name, short_side=short_side, quality=quality)
        except BrokenImageError as error:
            return Row(example.name, example.label, None, (), str(error))
        return Row(example.name, example.label, jpeg, odd)

    pending: deque[Future[Row]] = deque()
    for i in numbers:
        pending.append(pool.submit(one, i))
        if len(pending) >= window:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _counted(rows: Iterator[Row], track: Track) -> Iterator[Row]:
    for row in rows:
        yield row
        track.add(1)


def _check_broken(name: str, tallies: dict[str, Tally], total: int, max_broken_share: float) -> None:
    broken = [line for tally in tallies.values() for line in tally.broken]
    if len(broken) > max_broken_share * total:
        raise UserError(
            f"{name}: {len(broken)} broken images of {total} are more than the share {max_broken_share} that may be "
            f"left out: {_first(broken)}. Replace or remove them, or prepare with a larger share: "
            'make prepare DATA=… STORE=… ARGS="--max-broken-share …"; the shards written so far are kept'
        )


def _first(broken: list[str]) -> str:
    more = [f"and {len(broken) - BROKEN_NAMED:,} more"] if len(broken) > BROKEN_NAMED else []
    return "; ".join([*broken[:BROKEN_NAMED], *more])


def _fingerprint(classes: tuple[str, ...], shards: dict[str, list[Shard]], tallies: dict[str, Tally]) -> str:
    digest = hashlib.sha256(json.dumps(classes).encode())
    for split in sorted(shards):
        content = [split, *([shard.images, shard.bytes, shard.crc32] for shard in shards[split])]
        digest.update(json.dumps(content).encode())
        digest.update(np.concatenate(tallies[split].labels).astype("<i8").tobytes())
    return digest.hexdigest()


def _summary(name: str, where: str, index: Index, tallies: dict[str, Tally]) -> str:
    images = " and ".join(f"{split.images:,} {key}" for key, split in index.splits.items())
    megabytes = sum(shard.bytes for shard in index.shards()) / 1e6
    lines = [f"{name}: {images} images of {len(index.classes)} classes, {megabytes:,.1f} MB, in {where}"]
    odd = sum((tally.odd for tally in tallies.values()), Counter[str]())
    if odd:
        lines.append("  seen: " + ", ".join(f"{count:,} {kind}" for kind, count in sorted(odd.items())))
    if broken := [line for tally in tallies.values() for line in tally.broken]:
        lines.append(f"  broken and left out: {len(broken)}: {_first(broken)}")
    return "\n".join(lines)
