"""A prepared split: more shards than a process may have files open, and shards that somebody has forged."""

from __future__ import annotations

import re
import resource
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from tests import ROOT
from tests.images import CLASSES, image_folder, open_split, prepared
from trainer.contract import UserError
from trainer.data.format import ImageRow, Index, Shard, Size, SplitIndex, schema, write_shard
from trainer.data.reading.split import PreparedSplit

SHARDS = 30


@pytest.fixture(scope="module")
def many_shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    store = tmp_path_factory.mktemp("store")
    data = image_folder(store / "data", train=SHARDS // 3, val=1)
    return store, prepared(data, store, images_per_shard=1).prefix


@pytest.fixture
def few_open_files() -> Iterator[int]:
    """A soft limit that leaves room for ten more files. Most systems have 1,024, and a hard limit far above."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = max(int(file.name) for file in Path("/proc/self/fd").iterdir()) + 10
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_more_shards_than_the_soft_limit_of_open_files_are_read(
    many_shards: tuple[Path, str], few_open_files: int, tmp_path: Path
) -> None:
    store, _ = many_shards
    split = open_split(store, prepared(store / "data", store, images_per_shard=1))
    assert [len(split.jpeg(i)) > 100 for i in range(SHARDS)] == [True] * SHARDS
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == few_open_files


def test_more_shards_than_the_hard_limit_are_read_since_a_mapped_file_is_closed(many_shards: tuple[Path, str]) -> None:
    folder = many_shards[0] / many_shards[1]
    code = """
import sys
from pathlib import Path
from trainer.data.format import read_index
from trainer.data.reading.split import PreparedSplit
folder = Path(sys.argv[1])
split = PreparedSplit(folder, read_index(folder), "train", 32)
print(sum(len(split.jpeg(i)) > 100 for i in range(len(split))))
"""
    ended = subprocess.run(
        [sys.executable, "-c", code, str(folder)], cwd=ROOT, capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20)),
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (0, f"{SHARDS}\n"), ended.stderr


def test_an_image_outlives_the_split_that_it_came_from(many_shards: tuple[Path, str]) -> None:
    store, _ = many_shards
    split = open_split(store, prepared(store / "data", store, images_per_shard=1))
    jpeg, copy = split.jpeg(0), split.jpeg(0).tobytes()
    del split
    assert jpeg.tobytes() == copy


# Whoever can write the store can also write the checksums of the index. What then?


def opened(folder: Path, body: bytes, images: int) -> PreparedSplit:
    (folder / "train.arrow").write_bytes(body)
    shard = Shard("train.arrow", images, len(body), 0)
    index = Index("photos", "1", CLASSES, {"train": SplitIndex(images, (Size(32, 90, (shard,)),))}, "", None)
    return PreparedSplit(folder, index, "train", 32)


def a_shard(labels: tuple[int, ...] = (0, 1, 2, 0)) -> bytes:
    return write_shard(CLASSES, [ImageRow(f"{i}.JPEG", label, bytes(100), ()) for i, label in enumerate(labels)])


def test_a_shard_as_it_is_written_is_read(tmp_path: Path) -> None:
    split = opened(tmp_path, a_shard(), 4)
    assert (len(split), split.name(3), bytes(split.jpeg(3))) == (4, "3.JPEG", bytes(100))


@pytest.mark.parametrize("label", [-1, len(CLASSES), 2**40])
def test_a_label_of_no_class_is_refused(label: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train.arrow is not a whole shard \(labels from .* of 3 classes"):
        opened(tmp_path, a_shard((0, label)), 2)


@pytest.mark.parametrize(
    ("was", "forged"),
    [
        (struct.pack("<5i", 0, 100, 200, 300, 400), struct.pack("<5i", 0, 100, 200, 300, 1 << 30)),  # of the images
        (struct.pack("<5i", 0, 100, 200, 300, 400), struct.pack("<5i", 0, 300, 200, 300, 400)),
        (struct.pack("<5i", 0, 6, 12, 18, 24), struct.pack("<5i", 0, 6, 12, 18, 1 << 20)),  # of the names
        (struct.pack("<5i", 0, 6, 12, 18, 24), struct.pack("<5i", -(1 << 20), 6, 12, 18, 24)),
    ],
)
def test_lengths_beyond_the_file_are_refused(was: bytes, forged: bytes, tmp_path: Path) -> None:
    body = a_shard()
    assert body.count(was) == 1
    with pytest.raises(UserError, match=r"train.arrow is not a whole shard"):
        opened(tmp_path, body.replace(was, forged), 4)


@pytest.mark.parametrize("rows", [3_000, 50_000_000])
def test_more_rows_than_the_file_has_are_refused(rows: int, tmp_path: Path) -> None:
    body, four = a_shard(), struct.pack("<q", 4)
    places = [match.start() for match in re.finditer(re.escape(four), body)]
    assert places
    for place in places:  # the length of the batch, and of each of its columns
        body = body[:place] + struct.pack("<q", rows) + body[place + 8 :]
    with pytest.raises(UserError, match=r"train.arrow is not a whole shard"):
        opened(tmp_path, body, rows)


@pytest.mark.parametrize("missing", ["image", "label"])
def test_an_image_or_a_label_that_is_missing_is_refused(missing: str, tmp_path: Path) -> None:
    image = None if missing == "image" else {"bytes": b"x", "path": "a"}
    label = None if missing == "label" else 0
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema(CLASSES)) as writer:
        writer.write_batch(pa.record_batch({"image": [image], "label": [label]}, schema=schema(CLASSES)))
    with pytest.raises(UserError, match="an image, a name or a label is missing"):
        opened(tmp_path, sink.getvalue().to_pybytes(), 1)


def test_other_columns_are_refused(tmp_path: Path) -> None:
    sink = pa.BufferOutputStream()
    table = pa.record_batch({"image": pa.array([b"x"]), "label": pa.array([0])})
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_batch(table)
    with pytest.raises(UserError, match="its columns are"):
        opened(tmp_path, sink.getvalue().to_pybytes(), 1)
