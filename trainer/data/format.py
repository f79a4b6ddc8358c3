"""The prepared form: `index.json`, and shards, which are Arrow files that `datasets` can open, too.

Here is what they contain and how a shard is written. `making.prepare` decides what goes in; `reading.split` reads it.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from trainer.contract import UserError
from trainer.recipes.sides import Span
from trainer.values import SHA256, as_list, as_object, as_text, as_whole, parse_object, show

DATA_FORMAT = 1
INDEX = "index.json"
BATCH_IMAGES = 512  # of a record batch
NOTES = b"notes"  # of a record batch: what was odd, what was left out
PLAIN = r"[A-Za-z0-9_-][A-Za-z0-9_.-]*"  # a part of a path
AGAIN = "remove its folder and prepare or copy the data again"


@dataclass(frozen=True)
class Copies:
    """What is stored of every image: one JPEG for each short side, and their quality. Smaller originals stay small."""

    train: tuple[int, ...] = (256, 128)
    val: tuple[int, ...] = (320,)
    quality: int = 90

    def sides(self, split: str) -> tuple[int, ...]:
        return {"train": self.train, "val": self.val}[split]


class ShardHash:
    """The checksum of a shard's bytes, as they come: SHA-256, or CRC-32 where an older version made the shard."""

    def __init__(self, shard: Shard) -> None:
        self._sha256, self._crc32 = hashlib.sha256() if shard.sha256 else None, 0

    def update(self, piece: memoryview) -> None:
        if self._sha256 is not None:
            self._sha256.update(piece)  # with SHA-NI as fast as CRC-32, and beside other threads
        else:
            self._crc32 = zlib.crc32(piece, self._crc32)

    @property
    def value(self) -> str:
        """As `Shard.checksum` of what has come so far."""
        return self._sha256.hexdigest() if self._sha256 is not None else f"{self._crc32:08x}"


@dataclass(frozen=True)
class Shard:
    file: str
    images: int
    bytes: int
    crc32: int
    sha256: str = ""  # as 64 hex digits; older versions did not compute it

    @classmethod
    def from_json(cls, value: object) -> Shard:
        """Raises ValueError or TypeError if this is none."""
        shard = cls(**as_object("a shard", value))
        as_text("file", shard.file, PLAIN)
        as_text("sha256", shard.sha256, f"|{SHA256}")
        counts = shard.images, shard.bytes, shard.crc32
        if any(type(count) is not int or count < 0 for count in counts):
            raise ValueError(f"{', '.join(map(show, counts))} are no counts")
        return shard

    @property
    def checksum(self) -> str:
        """What its bytes are compared with, in hex digits."""
        return self.sha256 or f"{self.crc32:08x}"


@dataclass(frozen=True)
class Size:
    """All images of a split, stored with one short side. Smaller originals stay smaller."""

    short_side: int
    quality: int
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class SplitIndex:
    images: int
    sizes: tuple[Size, ...]


@dataclass(frozen=True)
class Origin:
    """What prepared data was made from. `digest` is of all its files: their paths, sizes and contents."""

    form: str  # folder or hub
    digest: str
    files: int
    bytes: int
    commit: str = ""  # of the hub


@dataclass(frozen=True)
class Index:
    name: str
    version: str
    classes: tuple[str, ...]
    splits: Mapping[str, SplitIndex]  # "train" and "val"
    fingerprint: str  # of the content: every shard's CRC-32, every label. Of runs that began before there was `sha256`
    source: Origin | None = None  # older versions did not record it

    def sides_for(self, split: str, span: Span) -> tuple[int, ...]:
        """The stored short sides that serve a span, rising: from the smallest that is large enough for its least side,
        to the smallest for its most. Where none is large enough, the largest.
        """
        sides = sorted(size.short_side for size in self.splits[split].sizes)
        first, last = (min(bisect_left(sides, wanted), len(sides) - 1) for wanted in span)
        return tuple(sides[first : last + 1])

    def shards(self) -> Iterator[Shard]:
        return (shard for split in self.splits.values() for size in split.sizes for shard in size.shards)

    @property
    def sha256(self) -> str:
        """Of the content: classes, and the SHA-256 of every shard. "" if the shards have none.

        Computed from what the shards are compared with. The name and the version do not count.
        """
        if not all(shard.sha256 for shard in self.shards()):
            return ""
        splits = {
            name: [[size.short_side, size.quality, [asdict(shard) for shard in size.shards]] for size in split.sizes]
            for name, split in self.splits.items()
        }
        return hashlib.sha256(json.dumps([self.classes, splits], sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        value = {"format": DATA_FORMAT, **asdict(self)}
        if self.source is None:
            del value["source"]
        return json.dumps(value, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> Index:
        """Read it, strictly. `where` is for the message."""
        try:
            raw = parse_object(text)
            found = raw.get("format")
            if found != DATA_FORMAT:
                raise UserError(
                    f"{where} has format {found!r}, this trainer reads {DATA_FORMAT}: prepare the data again with this "
                    "version (`make prepare`), or use the version that made it"
                )
            keys = {"format", "name", "version", "classes", "splits", "fingerprint"}
            source = raw.pop("source", None)
            if set(raw) != keys:
                raise ValueError(f"keys {sorted(set(raw) ^ keys)} are unknown or missing")
            splits = {
                name: SplitIndex(
                    as_whole("a count", split.pop("images")),
                    tuple(_size(**size) for size in split.pop("sizes")),
                    **split,
                )
                for name, split in raw["splits"].items()
            }
            _check_counts(splits)
            for key in ("name", "version"):  # parts of a path
                if not re.fullmatch(PLAIN, raw[key]):
                    raise ValueError(f"{key} {raw[key]!r} is not a plain name")
            origin = None if source is None else _origin(**source)
            classes = tuple(as_text("a class", one) for one in as_list("classes", raw["classes"]))
            return cls(raw["name"], raw["version"], classes, splits, as_text("it", raw["fingerprint"]), origin)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{where} is damaged ({error}): {AGAIN}") from error


def _origin(*, form: str, digest: str, files: int, bytes: int, commit: str) -> Origin:
    texts = [as_text("source", one) for one in (form, digest, commit)]
    return Origin(texts[0], texts[1], as_whole("a count", files), as_whole("a count", bytes), texts[2])


def _size(*, short_side: int, quality: int, shards: list[object]) -> Size:
    return Size(as_whole("a count", short_side), as_whole("a count", quality), tuple(map(Shard.from_json, shards)))


def _check_counts(splits: Mapping[str, SplitIndex]) -> None:
    if set(splits) != {"train", "val"}:
        raise ValueError(f"splits {sorted(splits)} are not train and val")
    for name, split in splits.items():
        if not split.images:
            raise ValueError(f"split {name} has no images")
        if not split.sizes:
            raise ValueError(f"split {name} has no sizes")
        for size in split.sizes:
            if sum(shard.images for shard in size.shards) != split.images:
                raise ValueError(f"the shards of {name} at {size.short_side} px do not hold {split.images} images")


def read_index(directory: Path) -> Index:
    """The index of a local prepared folder."""
    path = directory / INDEX
    try:
        return Index.from_json(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist: it is written last, so the data is not prepared or the copy is not complete; "
            "run `make prepare` again, it continues"
        ) from None


def schema(classes: tuple[str, ...]) -> pa.Schema:
    """The hub's ImageNet schema, with the metadata by which `datasets` knows Image and ClassLabel."""
    features = {"image": {"_type": "Image"}, "label": {"names": list(classes), "_type": "ClassLabel"}}
    return pa.schema(
        {"image": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "label": pa.int64()},
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )


@dataclass(frozen=True)
class ImageRow:
    """One image for a shard. An image without a JPEG is broken, and is left out."""

    name: str
    label: int
    jpeg: bytes | None
    odd: tuple[str, ...] = ()
    reason: str = ""
    hash: int = 0  # of the bytes of the source; 0 of a broken image


@dataclass
class Tally:
    """What one or several shards contain and leave out."""

    images: int = 0
    labels: list[npt.NDArray[np.int64]] = field(default_factory=list)
    odd: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)  # "name: reason"
    # Of each image of the source, broken ones, too, where it is 0. No shard has them: they are for comparing.
    hashes: list[npt.NDArray[np.uint64]] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.images += other.images
        self.labels += other.labels
        self.odd += other.odd
        self.broken += other.broken
        self.hashes += other.hashes


def write_shard(classes: tuple[str, ...], rows: Iterable[ImageRow]) -> bytes:
    """The bytes of a shard. It also records which images were odd or broken."""
    sink, features, rows = io.BytesIO(), schema(classes), iter(rows)
    with pa.ipc.new_file(sink, features) as writer:
        while batch := list(islice(rows, BATCH_IMAGES)):
            whole = [row for row in batch if row.jpeg is not None]
            jpegs, names = [row.jpeg for row in whole], [row.name for row in whole]
            images = pa.StructArray.from_arrays(
                [pa.array(jpegs, pa.binary()), pa.array(names, pa.string())], fields=list(features.field("image").type)
            )
            labels = pa.array([row.label for row in whole], pa.int64())
            notes = {
                "odd": Counter(kind for row in whole for kind in row.odd),
                "broken": [f"{row.name}: {row.reason}" for row in batch if row.jpeg is None],
            }
            writer.write_batch(
                pa.record_batch([images, labels], schema=features), custom_metadata={NOTES: json.dumps(notes).encode()}
            )
    return sink.getvalue()


def read_tally(body: bytes, where: str) -> Tally:
    """What `write_shard` recorded in a shard."""
    tally = Tally()
    try:
        reader = pa.ipc.open_file(pa.BufferReader(body))
        for i in range(reader.num_record_batches):
            batch, metadata = reader.get_batch_with_custom_metadata(i)
            notes = json.loads(metadata[NOTES])
            labels = batch.column("label").to_numpy().copy()  # else the whole shard stays in memory
            tally.add(Tally(len(batch), [labels], Counter(notes["odd"]), notes["broken"]))
    except (pa.ArrowInvalid, OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{where} is damaged ({error}): remove it and run `make prepare` again") from error
    return tally
