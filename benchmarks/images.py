"""The images that contenders read, in both forms: an image folder and mapped shards with the same bytes; their visits.

A visit is an image and its crop box. Order and boxes are those that training draws, so all contenders see the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image
from torchvision.datasets import ImageFolder

from trainer.data.format import Copies, ImageRow, Index, Shard, Size, SplitIndex, write_shard
from trainer.data.jpeg import Bytes
from trainer.data.making.prepare import prepare
from trainer.data.reading.order import CROP, CROP_DRAWS, draws, epoch_order, random_resized_crop
from trainer.data.reading.split import PreparedSplit
from trainer.data.reading.window import Box
from trainer.recipes.config import Config, DataConfig
from trainer.store import open_store

BATCH = 128
THREADS = 2  # or workers, of every contender


@dataclass(frozen=True, eq=False)
class Images:
    """The training images, once as `folder`/<class>/<file>, once as a mapped split, in the same order."""

    folder: Path
    split: PreparedSplit
    sizes: tuple[tuple[int, int], ...]  # width, height

    @classmethod
    def of(cls, folder: Path, split: PreparedSplit) -> Images:
        headers = (simplejpeg.decode_jpeg_header(split.jpeg(i)) for i in range(len(split)))
        return cls(folder, split, tuple((width, height) for height, width, *_ in headers))

    @cached_property
    def listed(self) -> ImageFolder:
        return ImageFolder(self.folder)

    @cached_property
    def jpegs(self) -> list[Bytes]:
        """In memory."""
        return [self.split.jpeg(i).copy() for i in range(len(self.split))]


@dataclass(frozen=True)
class Visits:
    """Whole batches only."""

    order: np.ndarray  # (M,) int64: numbers of images
    boxes: np.ndarray  # (M, 4) int64: left, top, width, height

    def __iter__(self) -> Iterator[tuple[int, Box]]:
        return ((i, tuple(box)) for i, box in zip(self.order.tolist(), self.boxes.tolist(), strict=True))

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, k: int) -> tuple[int, Box]:
        left, top, width, height = self.boxes[k].tolist()
        return int(self.order[k]), (left, top, width, height)


def config(pixels: int) -> Config:
    """What `train_jobs` needs to know: batches of BATCH at `pixels`, torchvision's default crops, flips."""
    data = DataConfig(resolution=pixels, start_resolution=pixels)
    return Config(global_batch_size=BATCH, device_batch_size=BATCH, data=data)


@lru_cache(maxsize=64)
def visits(images: Images, epochs: int) -> Visits:
    """Those of `train_jobs` in the first epochs."""
    drawn, count = config(224), len(images.split) // BATCH * BATCH
    order, boxes = [np.empty(0, np.int64)], list[Box]()
    for epoch in range(epochs):
        order.append(epoch_order(drawn.seed, epoch, len(images.split))[:count])
        for i, row in zip(order[-1], draws(CROP, drawn.seed, epoch, order[-1], CROP_DRAWS).tolist(), strict=True):
            boxes.append(random_resized_crop(row[1:], *images.sizes[i], drawn.data.crop_scale, drawn.data.crop_ratio))
    return Visits(np.concatenate(order), np.array(boxes, np.int64).reshape(-1, 4))


def originals(folder: Path, scratch: Path) -> Images:
    """The files of an image folder, and a shard with their bytes untouched."""
    found = ImageFolder(folder / "train")
    rows = (ImageRow(path, label, Path(path).read_bytes()) for path, label in found.samples)
    body = write_shard(tuple(found.classes), rows)
    scratch.mkdir(parents=True)
    (scratch / "originals.arrow").write_bytes(body)
    shard = Shard("originals.arrow", len(found), len(body), zlib.crc32(body), hashlib.sha256(body).hexdigest())
    split = SplitIndex(len(found), (Size(0, 0, (shard,)),))
    index = Index("originals", "0", tuple(found.classes), {"train": split}, "")
    return Images.of(folder / "train", PreparedSplit(scratch, index, "train", 0))


def prepared(folder: Path, scratch: Path, copies: Copies) -> tuple[Index, dict[tuple[str, int], PreparedSplit]]:
    """What `make prepare` makes of an image folder: the index, and the images by split and short side."""
    scratch.mkdir(exist_ok=True)
    with contextlib.redirect_stderr(io.StringIO()):  # its progress
        made = prepare(str(folder), open_store(str(scratch)), copies, workers=THREADS)
    where = scratch / made.prefix
    return made.index, {
        (name, side): PreparedSplit(where, made.index, name, side)
        for name in ("train", "val")
        for side in copies.sides(name)
    }


def without_markers(images: Images, scratch: Path) -> Images:
    """The same pixels, but for rounding, written again without restart markers: what peers would have been given."""
    files = [Path(path) for path, _ in images.listed.samples]
    for file in files:
        target = scratch / file.relative_to(images.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(file) as image:
            image.save(target, "JPEG", quality="keep", restart_marker_blocks=0)
    return Images.of(scratch, images.split)


def unpacked(split: PreparedSplit, folder: Path) -> Images:
    """A prepared split, and its bytes as an image folder."""
    for i in range(len(split)):
        path = folder / split.name(i)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(split.jpeg(i))
    return Images.of(folder / split.split, split)
