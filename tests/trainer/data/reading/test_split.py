"""A prepared split of more shards than a process may have files open."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import ROOT
from tests.images import image_folder, open_split, prepared

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
