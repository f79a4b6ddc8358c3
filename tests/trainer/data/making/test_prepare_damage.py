"""Damage that a preparation finds: in its source, and in what an earlier call has left in the store."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.emulator.s3 import FaultyProxy, refuse
from tests.images import (
    digests,
    image_folder,
    parquet_folder,
    prepared,
)
from trainer.contract import UserError
from trainer.data.format import Copies
from trainer.data.stage import stage
from trainer.store import ObjectStore, open_store

COPIES = Copies((32, 16), (40, 24), 90)


def cut_shard(folder: Path) -> str:
    path = folder / "train-32px-00000.arrow"
    path.write_bytes(path.read_bytes()[:-100])
    return r"train-32px-00000.arrow has \d+ bytes, not as train-32px-00000.arrow.json says: making it again"


def foreign_shard(folder: Path) -> str:
    (folder / "val-40px-00000.arrow").write_bytes((folder / "val-40px-00001.arrow").read_bytes())
    return r"val-40px-00000.arrow has \d+ bytes, not as val-40px-00000.arrow.json says: making it again"


def foreign_note(folder: Path) -> str:
    for ending in ("arrow", "arrow.json"):
        (folder / f"val-40px-00000.{ending}").write_bytes((folder / f"val-40px-00001.{ending}").read_bytes())
    return r"val-40px-00000.arrow has \d+ bytes, not as val-40px-00000.arrow.json says: making it again"


def cut_note(folder: Path) -> str:
    path = folder / "val-24px-00001.arrow.json"
    path.write_bytes(path.read_bytes()[:-10])
    return r"val-24px-00001.arrow.json is damaged \(.*\): making the shard again"


def note_without_counts(folder: Path) -> str:
    path = folder / "val-24px-00001.arrow.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"crc32": "1"}))
    return r"val-24px-00001.arrow.json is damaged \(.*no counts.*\): making the shard again"


def lost_note(folder: Path) -> str:
    """As after a kill between the two: the shard alone may be anything."""
    path = folder / "train-16px-00002.arrow"
    path.with_name(f"{path.name}.json").unlink()
    path.write_bytes(bytes(path.stat().st_size))
    return "preparing folder: 18 images"


@pytest.mark.parametrize("damage", [cut_shard, foreign_shard, foreign_note, cut_note, note_without_counts, lost_note])
def test_a_shard_that_is_not_as_the_file_beside_it_says_is_made_again(
    damage: Callable[[Path], str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data, options = image_folder(tmp_path / "folder"), dict[str, Any](copies=COPIES, images_per_shard=5)
    whole = prepared(data, tmp_path, **options)
    folder = tmp_path / whole.prefix
    expected = digests(folder)
    (folder / "index.json").unlink()
    message = damage(folder)
    capfd.readouterr()
    assert prepared(data, tmp_path, **options) == whole
    assert re.search(message, capfd.readouterr().err)
    assert digests(folder) == expected


def test_a_bit_that_flips_before_a_restart_does_not_become_the_truth(tmp_path: Path) -> None:
    data, options = image_folder(tmp_path / "folder"), dict[str, Any](images_per_shard=5)
    whole = prepared(data, tmp_path, **options)
    folder = tmp_path / whole.prefix
    (folder / "index.json").unlink()
    body = bytearray((folder / "train-32px-00001.arrow").read_bytes())
    body[len(body) // 2] ^= 1
    (folder / "train-32px-00001.arrow").write_bytes(body)
    assert prepared(data, tmp_path, **options) == whole
    with pytest.raises(
        UserError, match=r"train-32px-00001.arrow has checksum [0-9a-f]{64}, index.json says [0-9a-f]{64}"
    ):
        stage(str(folder), tmp_path / "scratch", COPIES, {"train": frozenset({(28, 28)})})


def other_format(folder: Path) -> str:
    path = folder / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    return r"index.json has format 99, this trainer reads \d+: prepare the data again"


def cut_index(folder: Path) -> str:
    (folder / "index.json").write_text('{"format": 1')
    return "index.json is damaged .*remove its folder and prepare"


def index_of_an_empty_split(folder: Path) -> str:
    path = folder / "index.json"
    index = json.loads(path.read_text())
    index["splits"]["val"]["images"] = 0
    for size in index["splits"]["val"]["sizes"]:
        for shard in size["shards"]:
            shard["images"] = 0
    path.write_text(json.dumps(index))
    return r"index.json is damaged \(split val has no images\)"


@pytest.mark.parametrize("damage", [other_format, cut_index, index_of_an_empty_split])
def test_damage_that_is_found_in_the_store_is_told_with_the_fix(damage: Callable[[Path], str], tmp_path: Path) -> None:
    folder, options = image_folder(tmp_path / "folder"), dict[str, Any](copies=COPIES, images_per_shard=5)
    message = damage(tmp_path / prepared(folder, tmp_path, **options).prefix)
    with pytest.raises(UserError, match=message):
        prepared(folder, tmp_path, **options)


def test_a_parquet_file_that_is_damaged_inside_is_named_and_what_is_complete_is_kept(tmp_path: Path) -> None:
    data = parquet_folder(tmp_path / "data")
    file = data / "data" / "train-00001-of-00002.parquet"
    body = bytearray(file.read_bytes())
    body[4:40] = bytes(36)  # the head of the first image page
    file.write_bytes(bytes(body))
    with pytest.raises(UserError, match=r"(?s)train-00001-of-00002.parquet is damaged in row group 0 .*fetch it again"):
        prepared(data, tmp_path, images_per_shard=3)
    kept = {path.name for path in (tmp_path / "datasets").rglob("*.arrow")}
    assert "train-32px-00000.arrow" in kept  # the second is being written, nobody waits for it
    assert kept <= {"train-32px-00000.arrow", "train-32px-00001.arrow"}


def without_sha256(store: ObjectStore, key: str) -> bytes:
    """Make the index one of an older version. Returns what it was."""
    body = store.get(key)
    raw = json.loads(body)
    for shard in (shard for split in raw["splits"].values() for size in split["sizes"] for shard in size["shards"]):
        del shard["sha256"]
    store.put(key, json.dumps(raw).encode())
    return body


def test_an_index_without_sha256_that_may_not_be_overwritten_is_told_before_the_work(
    tmp_path: Path, s3_uri: str, s3_proxy: FaultyProxy
) -> None:
    data, store = image_folder(tmp_path / "folder"), open_store(s3_uri)
    key = f"{prepared(data, s3_uri).prefix}/index.json"
    body = without_sha256(store, key)
    s3_proxy.plan("PUT", refuse(403, "AccessDenied"))  # no preparation on AWS may overwrite
    read: list[int] = []
    message = r"index.json was made by an older version, without SHA-256, and it may not be overwritten: delete it, and"
    with pytest.raises(UserError, match=message):
        prepared(data, s3_uri, strict=True, progress=read.append)
    assert not read
    prepared(data, s3_uri, strict=True)  # where it may be
    assert store.get(key) == body


def test_an_index_without_sha256_is_deleted_and_prepared_again(tmp_path: Path) -> None:
    data, store = image_folder(tmp_path / "folder"), open_store(str(tmp_path))
    key = f"{prepared(data, tmp_path).prefix}/index.json"
    body = without_sha256(store, key)
    assert prepared(data, tmp_path).index.sha256 == ""
    store.retire(key)
    prepared(data, tmp_path)
    assert store.get(key) == body
