"""Staging: the prepared data of a run on this machine, from a folder, from S3, or made here."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.emulator.s3 import Answer, FaultyProxy, Forward
from tests.images import digests, image_folder, prepared
from tests.shards import COPIES, ONE, WANTED, files, flip_a_bit, noise, passes
from trainer.contract import UserError
from trainer.data.format import INDEX, read_index
from trainer.data.stage import stage
from trainer.store import NotFoundError, ObjectStore, StoreError, open_store

# What is there afterwards


def test_a_prepared_folder_is_staged_as_itself_and_nothing_is_written_there(tmp_path: Path) -> None:
    place, _ = noise(tmp_path)
    folder = Path(place)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")} | {folder: folder.stat().st_mtime_ns}
    for path in before:
        path.chmod(0o555)
    assert stage(place, tmp_path / "scratch", COPIES, WANTED) == folder
    assert {path: path.stat().st_mtime_ns for path in [*folder.rglob("*"), folder]} == before
    folder.chmod(0o755)


def test_anything_else_is_prepared_into_scratch(tmp_path: Path) -> None:
    done: list[int] = []
    folder = stage("digits", tmp_path / "new" / "scratch", COPIES, WANTED, progress=done.append)
    assert folder.parent == tmp_path / "new" / "scratch" / "datasets" / "digits"
    assert sum(split.images for split in read_index(folder).splits.values()) == 1797


@pytest.mark.parametrize("file", ["scratch", "scratch/verified", "scratch/datasets/noise/v1"])
def test_a_file_in_the_place_of_a_folder_is_told(tmp_path: Path, s3_uri: str, file: str) -> None:
    place, _ = noise(s3_uri)
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("a file")
    with pytest.raises(UserError, match=rf"/{file} cannot be made or used \(File exists\): .*; remove what is in its"):
        stage(place, tmp_path / "scratch", COPIES, WANTED)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_scratch_that_cannot_be_locked_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    place, _ = noise(tmp_path)

    def refuse_to_lock(file: object, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse_to_lock)
    with pytest.raises(UserError, match=rf"scratch cannot be locked \({os.strerror(code)}\): .*; name a folder on a"):
        stage(place, tmp_path / "scratch", COPIES, WANTED)


def test_a_scratch_on_a_mount_that_answers_with_zeros_is_used(
    tmp_path: Path, s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, _ = noise(s3_uri)
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result([4096, 4096] + [0] * 8))
    assert stage(place, tmp_path / "scratch", COPIES, WANTED).is_dir()


def test_prepared_shards_in_s3_are_copied_byte_for_byte(tmp_path: Path, s3_uri: str) -> None:
    result = prepared(image_folder(tmp_path / "folder"), s3_uri, images_per_shard=5)
    local = stage(f"{s3_uri}/{result.prefix}", tmp_path, COPIES, WANTED)
    assert local == tmp_path / result.prefix
    assert digests(local) == digests(
        tmp_path / prepared(tmp_path / "folder", tmp_path / "b", images_per_shard=5).prefix
    )


def test_only_the_sizes_that_serve_are_fetched_and_what_is_wanted_later_is_added(
    tmp_path: Path, s3_uri: str, s3_proxy: FaultyProxy
) -> None:
    place, index = noise(s3_uri)
    s3_proxy.requests.clear()
    small = {"train": frozenset({(14, 14), (16, 16)}), "val": frozenset({(20, 20)})}
    local = stage(place, tmp_path, COPIES, small)
    assert files(local) == [INDEX, "train-16px-00000.arrow", "train-16px-00001.arrow", "val-32px-00000.arrow"]
    assert read_index(local) == index
    s3_proxy.requests.clear()
    stage(place, tmp_path, COPIES, {"train": frozenset({(14, 14), (14, 20), (99, 99)})})
    assert files(local) == sorted([INDEX, *(shard.file for shard in index.shards())])
    assert len(s3_proxy.requests) == 3  # the index, two shards


def test_a_place_in_s3_without_an_index_is_told(tmp_path: Path, s3_uri: str) -> None:
    with pytest.raises(UserError, match=r"has no index.json: give the folder that `make prepare` printed"):
        stage(f"{s3_uri}/datasets/a/b", tmp_path, COPIES, WANTED)


# Damage


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def remove(path: Path) -> None:
    path.unlink()


DAMAGES: dict[Callable[[Path], None], str] = {
    flip_a_bit: r"has checksum [0-9a-f]{64}, index.json says [0-9a-f]{64}",
    truncate: "has 4999 bytes, index.json says 5000",
    lengthen: "has 5001 bytes, index.json says 5000",
    remove: "is missing",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_of_a_copy_is_fetched_again_and_no_other_is(
    tmp_path: Path, s3_uri: str, s3_proxy: FaultyProxy, damage: Callable[[Path], None]
) -> None:
    place, _ = noise(s3_uri)
    local = stage(place, tmp_path, COPIES, WANTED)
    whole = digests(local)
    damage(local / "train-32px-00001.arrow")
    s3_proxy.requests.clear()
    assert stage(place, tmp_path, COPIES, WANTED) == local
    assert digests(local) == whole
    assert [line.split("/")[-1].split("?")[0] for line in s3_proxy.requests] == [INDEX, "train-32px-00001.arrow"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_of_a_prepared_folder_is_told(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    place, _ = noise(tmp_path)
    damage(Path(place) / "train-32px-00001.arrow")
    with pytest.raises(UserError, match=rf"train-32px-00001.arrow {DAMAGES[damage]}: every shard must be .* copy it"):
        stage(place, tmp_path / "scratch", COPIES, WANTED)
    stage(place, tmp_path / "scratch", COPIES, {"train": frozenset({(16, 16)})})  # what is not wanted is not looked at


@pytest.mark.parametrize("damage", [flip_a_bit, truncate, remove])
def test_a_damaged_shard_in_s3_is_told_and_leaves_no_index(
    tmp_path: Path, s3_uri: str, damage: Callable[[Path], None]
) -> None:
    place, index = noise(s3_uri, shards=1)
    store, shard = open_store(place), index.splits["train"].sizes[0].shards[0]
    body, spoilt = store.get(shard.file), tmp_path / "spoilt"
    spoilt.write_bytes(body)
    damage(spoilt)
    if spoilt.exists():
        store.put(shard.file, spoilt.read_bytes())
    else:
        place = without(store, shard.file, f"{s3_uri}/other")
    with pytest.raises(UserError, match=rf"{shard.file} .*damaged in the store; remove it and index.json there"):
        stage(place, tmp_path / "scratch", COPIES, WANTED)
    local = tmp_path / "scratch/datasets/noise/v1"
    assert not {INDEX, shard.file} & set(files(local))
    open_store(place).put(shard.file, body)
    stage(place, tmp_path / "scratch", COPIES, WANTED)
    assert (local / shard.file).read_bytes() == body


def flips_bit(number: int) -> Callable[[Forward], Answer]:
    """On the way, and nothing tells: S3 gives no checksum with a range, though moto does if it is the whole object."""

    def damage(forward: Forward) -> Answer:
        status, headers, body = forward()
        spoilt = bytearray(body)
        spoilt[number // 8] ^= 1 << number % 8
        return status, {k: v for k, v in headers.items() if "checksum" not in k.lower()}, bytes(spoilt)

    return damage


@pytest.mark.parametrize("kept", [0, 2500, 5000])
def test_a_bit_that_flips_on_the_way_costs_another_fetch_and_no_more(
    tmp_path: Path, s3_uri: str, s3_proxy: FaultyProxy, capfd: pytest.CaptureFixture[str], kept: int
) -> None:
    place, index = noise(s3_uri)
    shard = index.splits["val"].sizes[0].shards[0]
    body, local = open_store(place).get(shard.file), tmp_path / "datasets/noise/v1"
    local.mkdir(parents=True)
    part = local / f"{shard.file}.part"
    part.write_bytes(body[:kept])
    if kept == len(body):
        flip_a_bit(part)
    s3_proxy.requests.clear()
    s3_proxy.plan("GET", passes, flips_bit(4321))
    stage(place, tmp_path, COPIES, ONE)
    assert not s3_proxy.faults["GET"]
    assert (local / shard.file).read_bytes() == body
    assert len(s3_proxy.requests) == 3  # the index; the shard, or what was left of it; the shard
    assert f"says {shard.sha256}: fetching it again" in capfd.readouterr().err


def test_a_shard_that_arrives_with_other_damage_each_time_is_not_called_damaged_in_the_store(
    tmp_path: Path, s3_uri: str, s3_proxy: FaultyProxy
) -> None:
    place, index = noise(s3_uri)
    shard = index.splits["val"].sizes[0].shards[0]
    s3_proxy.plan("GET", passes, flips_bit(4321), flips_bit(1234))
    with pytest.raises(
        StoreError, match=rf"arrived with .*says {shard.sha256}: it is damaged on its way .*start again"
    ):
        stage(place, tmp_path, COPIES, ONE)
    local = stage(place, tmp_path, COPIES, ONE)
    assert (local / shard.file).read_bytes() == open_store(place).get(shard.file)


def without(store: ObjectStore, missing: str, place: str) -> str:
    """A copy of the data elsewhere, but for one object: nothing in S3 is ever deleted."""
    for info in store.list(""):
        if info.key != missing:
            open_store(place).put(info.key, store.get(info.key))
    with pytest.raises(NotFoundError):
        open_store(place).get(missing)
    return place


def test_an_index_of_another_format_is_told(tmp_path: Path, s3_uri: str) -> None:
    for store in (s3_uri, tmp_path):
        place, index = noise(store)
        other = json.loads(index.to_json()) | {"format": 99}
        open_store(place).put(INDEX, json.dumps(other).encode())
        with pytest.raises(UserError, match=r"index.json has format 99, this trainer reads \d+: prepare"):
            stage(place, tmp_path / "scratch", COPIES, WANTED)


def test_data_that_was_prepared_anew_under_the_same_name_replaces_the_copy(tmp_path: Path, s3_uri: str) -> None:
    local = stage(noise(s3_uri)[0], tmp_path, COPIES, WANTED)
    place, index = noise(s3_uri)
    assert stage(place, tmp_path, COPIES, WANTED) == local
    assert read_index(local) == index
    for shard in index.splits["train"].sizes[0].shards:
        assert zlib.crc32((local / shard.file).read_bytes()) == shard.crc32
