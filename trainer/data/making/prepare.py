"""Prepares what DATA= names: makes `datasets/<name>/<version>/` in a store.

A pool of threads decodes every image once; `convert` has what happens to one image. The bytes depend on the source and
the options alone, so two preparations into one place write the same.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace

import numpy as np

from trainer.contract import UserError, dataset_key
from trainer.data.format import DATA_FORMAT, INDEX, Copies, Index, Shard, Size, SplitIndex, Tally
from trainer.data.making.convert import CONVERSION
from trainer.data.making.doubts import doubts_of, show_class_counts
from trainer.data.making.forms.sources import Source
from trainer.data.making.layout import NONE, Choices
from trainer.data.making.parts import NOTE, Part, ShardMaker, default_images, parts_of
from trainer.data.making.revision.identity import identity_of
from trainer.data.making.revision.manifest import SourceMemory
from trainer.data.making.versions import say_others, say_same
from trainer.data.progress import ProgressListener, Track, show_rate
from trainer.store import DENIED, NotFoundError, ObjectStore, StoreError
from trainer.store.creation import write_new
from trainer.text import say, show_bytes, show_estimate

BROKEN_NAMED = 10
NO_MEMORY = SourceMemory()

Shards = dict[str, list[tuple[Shard, ...]]]  # split: for each part, one shard of each short side


@dataclass(frozen=True)
class Prepared:
    prefix: str  # of the store: datasets/<name>/<version>
    index: Index


def prepare(
    data: str,
    store: ObjectStore,
    copies: Copies,
    *,
    choices: Choices = NONE,
    secrets_dir: str = "",
    workers: int = 0,
    max_broken_share: float = 0.001,
    images_per_shard: int = 0,
    strict: bool = False,
    memory: SourceMemory = NO_MEMORY,
    progress: ProgressListener | None = None,
    downloaded: ProgressListener | None = None,
) -> Prepared:
    """Write the shards, then the index. If the index exists, do nothing. Shards that exist are kept, unread.

    Where they are follows from the content of the source, which is read first, unless `memory` knows it. A source that
    changes while it is read is refused. `choices` answers what the files of `data` leave open. If `strict`, what may be
    wrong with the data is an error.

    `progress` is told of images, `downloaded` of bytes of the source; without `downloaded`, `progress` is told of both.

    `workers` of 0 means all cores, `images_per_shard` of 0 about 128 MB for the largest copy. Memory holds the images
    of one shard while they are converted, and of the last one while it is written. Raises UserError and StoreError.
    After an error or an interruption a later call continues. Neither waits for the shard that is being written.
    """
    copies = _checked(copies, max_broken_share)
    identity = identity_of(
        data, choices, memory, secrets_dir=secrets_dir, workers=workers, progress=downloaded or progress
    )
    per_shard = {split: images_per_shard or default_images(copies.sides(split)) for split in ("train", "val")}
    prefix = _prefix(name := identity.name, copies, [identity.content, per_shard])
    where = store.describe(prefix)
    if (before := _finished(store, prefix, goes_on=strict)) and not strict:
        say(f"{name}: already prepared in {where}{identity.how and f'; {identity.how}'}")
        return Prepared(prefix, before)
    others = say_others(store, name, prefix, copies, identity.origin) if identity.origin else []

    source, watch = identity.open()
    workers = workers or os.cpu_count() or 1
    there = _whole(store, prefix)
    pool = ThreadPoolExecutor(workers, "prepare")
    try:
        maker = ShardMaker(source, store, prefix, copies, there, workers, pool, watch)
        shards, tallies, track = _make(maker, list(parts_of(source, per_shard, copies)), max_broken_share, progress)
    finally:  # also if nobody wants the rest
        pool.shutdown(wait=False, cancel_futures=True)
    _check_not_empty(name, tallies)
    doubts = _doubts(name, source, tallies, strict)

    if watch:
        watch.check_all()
    index = replace(_index_of(name, prefix, copies, source.classes, shards, tallies), source=identity.origin)
    if not before or replace(before, source=index.source) != index:
        write_new(store, f"{prefix}/{INDEX}", index.to_json().encode())
    say("\n  ".join([_summary(name, where, index, tallies), show_class_counts(source, tallies), *source.said, *doubts]))
    say_same(others, index)
    _say_pace(track, workers)
    return Prepared(prefix, index)


def _say_pace(track: Track, workers: int) -> None:
    if track.worked:
        took, rate = show_estimate(track.seconds), show_rate(track.worked, track.seconds, workers)
        say(f"  converted {track.worked:,} images in {took}, {rate}")


def _whole(store: ObjectStore, prefix: str) -> set[str]:
    """The shards that an earlier call has written, with the small file beside each."""
    files = {info.key.rpartition("/")[2] for info in store.list(f"{prefix}/")}
    return {file for file in files if file + NOTE in files}


def _make(
    maker: ShardMaker, parts: Sequence[Part], max_broken_share: float, progress: ProgressListener | None
) -> tuple[Shards, dict[str, Tally], Track]:
    """Make all parts that are not there. Raises UserError as soon as too many images are broken."""
    source = maker.source
    tallies = {split: Tally() for split in source.splits}
    shards: Shards = {split: [] for split in source.splits}
    total = sum(len(split) for split in source.splits.values())
    maker.estimate([part for part in parts if not all(file in maker.there for file in part.files)])
    with Track(total, "images", f"preparing {source.name}", progress) as track:
        for part in maker.run(parts, track):
            shards[part.split].append(part.shards)
            tallies[part.split].add(part.tally)
            _check_broken(source.name, tallies, total, max_broken_share)
    return shards, tallies, track


def _index_of(
    name: str,
    prefix: str,
    copies: Copies,
    classes: tuple[str, ...],
    shards: Shards,
    tallies: dict[str, Tally],
) -> Index:
    """The index of the prepared form."""
    splits = {}
    for split, of_parts in shards.items():
        of_sides = zip(copies.sides(split), zip(*of_parts, strict=True), strict=True)
        splits[split] = SplitIndex(
            tallies[split].images, tuple(Size(side, copies.quality, of_side) for side, of_side in of_sides)
        )
    version = prefix.rpartition("/")[2]
    return Index(name, version, classes, splits, _fingerprint(classes, splits, tallies))


def _checked(copies: Copies, max_broken_share: float) -> Copies:
    """The copies, largest first, since each is made from the one before. Raises UserError for values out of range."""
    for split in ("train", "val"):
        sides = copies.sides(split)
        if not sides or len(set(sides)) < len(sides):
            raise UserError(f"short sides {sides} of {split} are none, or one twice: use for example 256 128")
        if min(sides) < 8:
            raise UserError(
                f"short side {min(sides)} is too small: use pixels, 8 or more; 256 serves training up to 224"
            )
    if not 1 <= copies.quality <= 95:
        raise UserError(f"quality {copies.quality} is not a JPEG quality: use 1 to 95; 90 is the default")
    if not 0 <= max_broken_share < 1:
        raise UserError(f"max broken share {max_broken_share} is not a share: use 0 to 1, for example 0.001")
    return replace(copies, train=_falling(copies.train), val=_falling(copies.val))


def _falling(sides: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(sides, reverse=True))


def _prefix(name: str, copies: Copies, content: Sequence[object]) -> str:
    """`datasets/<name>/<version>`. The version shows the options, and a hash of everything that decides the content."""
    decides = [DATA_FORMAT, CONVERSION, copies.train, copies.val, copies.quality, *content]
    digest = hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:12]
    sides = "-".join(str(side) for side in copies.train)
    return dataset_key(name, f"{sides}px-q{copies.quality}-{digest}", "").rstrip("/")


def _finished(store: ObjectStore, prefix: str, *, goes_on: bool) -> Index | None:
    """The index, if there is one. An index without SHA-256 is replaced if the preparation goes on.

    Raises UserError before the work if the store lets nobody overwrite it.
    """
    key = f"{prefix}/{INDEX}"
    try:
        index = Index.from_json(body := store.get(key), store.describe(key))
    except NotFoundError:
        return None
    if not index.sha256 and goes_on:
        _check_replaceable(store, key, body)
    return index


def _check_replaceable(store: ObjectStore, key: str, index: bytes) -> None:
    try:
        store.put(key, index)
    except StoreError as error:
        if error.code not in DENIED:
            raise
        raise UserError(
            f"{store.describe(key)} was made by an older version, without SHA-256, and it may not be overwritten: "
            "delete it, and run the same command again"
        ) from error


def _check_broken(name: str, tallies: dict[str, Tally], total: int, max_broken_share: float) -> None:
    broken = [line for tally in tallies.values() for line in tally.broken]
    if len(broken) > max_broken_share * total:
        raise UserError(
            f"{name}: {len(broken)} broken images of {total} are more than the share {max_broken_share} that may be "
            f"left out: {_first(broken)}. Replace or remove them, or prepare with a larger share: "
            'make prepare DATA=… STORE=… ARGS="--max-broken-share …"; the shards written so far are kept'
        )


def _check_not_empty(name: str, tallies: dict[str, Tally]) -> None:
    for split, tally in tallies.items():
        if not tally.images:
            raise UserError(
                f"{name}: split {split} has no image left, all {len(tally.broken)} are broken: {_first(tally.broken)}. "
                "Replace them: training and evaluation need at least one image each"
            )


def _doubts(name: str, source: Source, tallies: dict[str, Tally], strict: bool) -> list[str]:
    """What should be looked at in the data, to be said; an error if `strict`."""
    doubts = doubts_of(source, tallies)
    if doubts and strict:
        raise UserError(
            f"{name}: {'; '.join(doubts)}. Correct the data, or prepare it without --strict-data; the shards written "
            "so far are kept"
        )
    return [f"look at this: {doubt}" for doubt in doubts]


def _first(broken: list[str]) -> str:
    more = [f"and {len(broken) - BROKEN_NAMED:,} more"] if len(broken) > BROKEN_NAMED else []
    return "; ".join([*broken[:BROKEN_NAMED], *more])


def _fingerprint(classes: tuple[str, ...], splits: dict[str, SplitIndex], tallies: dict[str, Tally]) -> str:
    digest = hashlib.sha256(json.dumps(classes).encode())
    for split in sorted(splits):
        shards = [[s.short_side, s.quality, [_as_before(shard) for shard in s.shards]] for s in splits[split].sizes]
        digest.update(json.dumps([split, *shards]).encode())
        digest.update(np.concatenate(tallies[split].labels).astype("<i8").tobytes())
    return digest.hexdigest()


def _as_before(shard: Shard) -> dict[str, object]:
    """A shard as versions without SHA-256 wrote it: runs that began with them know the data by its fingerprint."""
    return {name: value for name, value in asdict(shard).items() if name != "sha256"}


def _summary(name: str, where: str, index: Index, tallies: dict[str, Tally]) -> str:
    images = " and ".join(f"{split.images:,} {key}" for key, split in index.splits.items())
    size = show_bytes(sum(shard.bytes for shard in index.shards()))
    lines = [f"{name}: {images} images of {len(index.classes)} classes, {size}, in {where}"]
    copies = [
        f"{split} {size.short_side} px {show_bytes(sum(shard.bytes for shard in size.shards))}"
        for split, content in index.splits.items()
        for size in content.sizes
    ]
    lines.append("  copies: " + ", ".join(copies))
    odd = sum((tally.odd for tally in tallies.values()), Counter[str]())
    if odd:
        lines.append("  seen: " + ", ".join(f"{count:,} {kind}" for kind, count in sorted(odd.items())))
    if broken := [line for tally in tallies.values() for line in tally.broken]:
        lines.append(f"  broken and left out: {len(broken)}: {_first(broken)}")
    return "\n".join(lines)
