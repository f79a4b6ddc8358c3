"""Prepared data for the tests of staging: shards of noise, since staging reads nothing of a shard but its bytes."""

from __future__ import annotations

import hashlib
import os
import zlib
from pathlib import Path

from tests.emulator.s3 import Answer, Forward
from trainer.data.format import INDEX, Copies, Index, Shard, Size, SplitIndex
from trainer.data.stage import stage
from trainer.store import open_store

COPIES = Copies((32,), (32,), 90)
WANTED = {"train": frozenset({(32, 32)}), "val": frozenset({(32, 32)})}
ONE = {"val": frozenset({(32, 32)})}  # a single shard


def noise(store: str | Path, *, bytes: int = 5000, shards: int = 2, is_old: bool = False) -> tuple[str, Index]:
    """A data set in a store, of two training sizes and one of validation. Staging reads nothing of a shard but its
    bytes, so they are noise. An older version prepared one that `is_old`."""
    place = f"{store}/datasets/noise/v1"
    target = open_store(place)

    def size(split: str, short_side: int, count: int) -> Size:
        made = []
        for number in range(count):
            body = os.urandom(bytes)
            sha256 = "" if is_old else hashlib.sha256(body).hexdigest()
            made.append(Shard(f"{split}-{short_side}px-{number:05d}.arrow", 1, len(body), zlib.crc32(body), sha256))
            target.put(made[-1].file, body)
        return Size(short_side, 90, tuple(made))

    splits = {
        "train": SplitIndex(shards, (size("train", 32, shards), size("train", 16, shards))),
        "val": SplitIndex(1, (size("val", 32, 1),)),
    }
    index = Index("noise", "v1", ("noise",), splits, "")
    target.put(INDEX, index.to_json().encode())
    return place, index


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def bytes_wanted(index: Index) -> int:
    return sum(shard.bytes for shard in index.shards() if "16px" not in shard.file)


def flip_a_bit(path: Path) -> None:
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body)


def bytes_read(place: str, scratch: Path) -> int:
    done: list[int] = []
    stage(place, scratch, COPIES, WANTED, progress=done.append)
    return sum(done)


def passes(forward: Forward) -> Answer:
    return forward()
