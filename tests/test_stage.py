"""Staging: the prepared data of a run on this machine, from a folder, from S3, or made here."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.images import image_folder, prepared
from tests.test_prepare import digests
from trainer.contract import UserError
from trainer.data.shards import Copies, read_index
from trainer.data.stage import stage
from trainer.store import open_store

COPIES = Copies((32,), (32,), 90)
WANTED = {"train": frozenset({32}), "val": frozenset({32})}


def test_a_prepared_folder_is_staged_as_itself(tmp_path: Path) -> None:
    folder = tmp_path / prepared(image_folder(tmp_path / "folder"), tmp_path).prefix
    assert stage(str(folder), tmp_path / "scratch", COPIES, WANTED) == folder
    assert not (tmp_path / "scratch").exists()


def test_anything_else_is_prepared_into_scratch(tmp_path: Path) -> None:
    done: list[int] = []
    folder = stage("digits", tmp_path / "new" / "scratch", COPIES, WANTED, progress=done.append)
    assert folder.parent == tmp_path / "new" / "scratch" / "datasets" / "digits"
    assert sum(split.images for split in read_index(folder).splits.values()) == sum(done) == 1797


def test_a_scratch_that_is_no_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "scratch").write_text("a file")
    with pytest.raises(UserError, match=r"scratch cannot be made or used \(File exists\): name a folder"):
        stage("digits", tmp_path / "scratch", COPIES, WANTED)


def test_shards_in_s3_are_copied_checked_and_kept(tmp_path: Path, s3_uri: str) -> None:
    result = prepared(image_folder(tmp_path / "folder"), s3_uri, images_per_shard=5)
    uri, done = f"{s3_uri}/{result.prefix}", list[int]()
    local = stage(uri, tmp_path, COPIES, WANTED, progress=done.append)
    assert local == tmp_path / result.prefix
    assert sum(done) == sum(shard.bytes for shard in result.index.shards())
    assert [shard.file for shard in read_index(local).shards()] == [shard.file for shard in result.index.shards()]
    whole, kept = digests(local), local / "train-32px-00000.arrow"
    (local / "index.json").unlink()  # as if the copy had been interrupted
    cut = local / "train-32px-00001.arrow"
    cut.write_bytes(cut.read_bytes()[:100])
    stamp = kept.stat().st_mtime_ns
    assert stage(uri, tmp_path, COPIES, WANTED) == local
    assert digests(local) == whole
    assert kept.stat().st_mtime_ns == stamp


def test_a_flipped_bit_in_s3_is_caught_and_leaves_no_index(tmp_path: Path, s3_uri: str) -> None:
    result = prepared(image_folder(tmp_path / "folder"), s3_uri)
    store, key = open_store(s3_uri), f"{result.prefix}/train-32px-00000.arrow"
    body = bytearray(store.get(key))
    body[len(body) // 2] ^= 1
    store.put(key, bytes(body))
    with pytest.raises(UserError, match=r"train-32px-00000.arrow has checksum .* damaged in the store"):
        stage(f"{s3_uri}/{result.prefix}", tmp_path / "scratch", COPIES, WANTED)
    assert not list((tmp_path / "scratch").rglob("index.json"))
    assert not list((tmp_path / "scratch").rglob("train-32px-00000.arrow"))


def test_a_place_in_s3_without_an_index_is_told(tmp_path: Path, s3_uri: str) -> None:
    with pytest.raises(UserError, match=r"has no index.json: give the folder that `make prepare` printed"):
        stage(f"{s3_uri}/datasets/a/b", tmp_path, COPIES, WANTED)
