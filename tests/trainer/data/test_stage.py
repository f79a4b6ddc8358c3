"""Staging: the prepared data of a run on this machine, from a folder, from S3, or made here."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests import ROOT
from tests.emulator.s3 import Answer, FaultyProxy, Forward, cut_answer, refuse
from tests.images import image_folder, prepared
from tests.trainer.data.making.test_prepare import digests
from trainer.contract import UserError
from trainer.data.format import INDEX, Copies, Index, Shard, Size, SplitIndex, read_index
from trainer.data.reading import verify
from trainer.data.stage import stage
from trainer.store import NotFoundError, ObjectStore, StoreError, open_store

COPIES = Copies((32,), (32,), 90)
WANTED = {"train": frozenset({32}), "val": frozenset({32})}
ONE = {"val": frozenset({32})}  # a single shard


def noise(store: str | Path, *, bytes: int = 5000, shards: int = 2) -> tuple[str, Index]:
    """A data set in a store, of two training sizes and one of validation. Staging reads nothing of a shard but its
    bytes, so they are noise."""
    place = f"{store}/datasets/noise/v1"
    target = open_store(place)

    def size(split: str, short_side: int, count: int) -> Size:
        made = []
        for number in range(count):
            body = os.urandom(bytes)
            made.append(Shard(f"{split}-{short_side}px-{number:05d}.arrow", 1, len(body), zlib.crc32(body)))
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
    small = {"train": frozenset({12, 14}), "val": frozenset({20})}
    local = stage(place, tmp_path, COPIES, small)
    assert files(local) == [INDEX, "train-16px-00000.arrow", "train-16px-00001.arrow", "val-32px-00000.arrow"]
    assert read_index(local) == index
    s3_proxy.requests.clear()
    stage(place, tmp_path, COPIES, {"train": frozenset({12, 17, 99})})
    assert files(local) == sorted([INDEX, *(shard.file for shard in index.shards())])
    assert len(s3_proxy.requests) == 3  # the index, two shards


def test_a_place_in_s3_without_an_index_is_told(tmp_path: Path, s3_uri: str) -> None:
    with pytest.raises(UserError, match=r"has no index.json: give the folder that `make prepare` printed"):
        stage(f"{s3_uri}/datasets/a/b", tmp_path, COPIES, WANTED)


# Damage


def flip_a_bit(path: Path) -> None:
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def remove(path: Path) -> None:
    path.unlink()


DAMAGES: dict[Callable[[Path], None], str] = {
    flip_a_bit: r"has checksum \d+, index.json says \d+",
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
    stage(place, tmp_path / "scratch", COPIES, {"train": frozenset({14})})  # what is not wanted is not looked at


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
    assert f"says {shard.crc32}: fetching it again" in capfd.readouterr().err


def test_a_shard_that_arrives_with_other_damage_each_time_is_not_called_damaged_in_the_store(
    tmp_path: Path, s3_uri: str, s3_proxy: FaultyProxy
) -> None:
    place, index = noise(s3_uri)
    shard = index.splits["val"].sizes[0].shards[0]
    s3_proxy.plan("GET", passes, flips_bit(4321), flips_bit(1234))
    with pytest.raises(StoreError, match=rf"arrived with .*says {shard.crc32}: it is damaged on its way .*start again"):
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


# What was verified is known


def bytes_read(place: str, scratch: Path) -> int:
    done: list[int] = []
    stage(place, scratch, COPIES, WANTED, progress=done.append)
    return sum(done)


def test_a_whole_shard_is_read_once_until_it_changes(tmp_path: Path, s3_uri: str) -> None:
    for place, index in (noise(tmp_path), noise(s3_uri)):
        scratch = tmp_path / "scratch"
        assert bytes_read(place, scratch) == bytes_wanted(index)
        assert bytes_read(place, scratch) == 0
        folder = Path(place) if not place.startswith("s3") else scratch / "datasets/noise/v1"
        (folder / "val-32px-00000.arrow").touch()
        assert bytes_read(place, scratch) == 5000
        assert bytes_read(place, scratch) == 0


def test_every_shard_is_read_again_after_a_restart_of_the_machine(tmp_path: Path) -> None:
    place, index = noise(tmp_path)
    assert bytes_read(place, tmp_path) == bytes_wanted(index)
    known, shard = tmp_path / "verified/noise-v1.json", Path(place) / "train-32px-00000.arrow"
    stamp = shard.stat()
    flip_a_bit(shard)
    os.utime(shard, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # as if its last pages had never reached the disk
    known.write_text(json.dumps(json.loads(known.read_text()) | {"boot": "an earlier one"}))
    with pytest.raises(UserError, match=r"train-32px-00000.arrow has checksum"):
        stage(place, tmp_path, COPIES, WANTED)


TORN = ["", "{", "[]", '{"boot": "x"}', '{"boot": BOOT}', *[f'{{"boot": BOOT, "files": {x}}}' for x in ("[]", "null")]]


@pytest.mark.parametrize("content", TORN)
def test_a_torn_list_of_what_is_known_costs_another_read_and_no_more(tmp_path: Path, content: str) -> None:
    place, index = noise(tmp_path)
    stage(place, tmp_path, COPIES, WANTED)
    known = tmp_path / "verified/noise-v1.json"
    known.write_text(content.replace("BOOT", json.dumps(json.loads(known.read_text())["boot"])))
    assert bytes_read(place, tmp_path) == bytes_wanted(index)
    assert bytes_read(place, tmp_path) == 0


def test_where_a_restart_cannot_be_told_every_shard_is_read_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, index = noise(tmp_path)
    assert bytes_read(place, tmp_path) == bytes_wanted(index)
    monkeypatch.setattr(verify, "BOOT_ID", tmp_path / "missing")
    assert [bytes_read(place, tmp_path) for _ in range(2)] == [bytes_wanted(index)] * 2


# Interruptions

ATTEMPTS = 3  # of the client: a request that a silent server never answers costs it 15 seconds
AT_ONCE = 10  # seconds: less than that, and enough for a busy machine


def stalls(gate: threading.Event, body: bytes) -> Callable[[Forward], Answer]:
    """Those answers that have this body."""

    def wait(forward: Forward) -> Answer:
        answer = forward()
        if answer[2] == body:
            gate.wait(60)
        return answer

    return wait


def hangs(gate: threading.Event) -> Callable[[Forward], None]:
    """For a client that is gone by then."""

    def wait(forward: Forward) -> None:
        gate.wait(60)

    return wait


def passes(forward: Forward) -> Answer:
    return forward()


def in_a_process(place: str, scratch: Path) -> subprocess.Popen[str]:
    code = f"""
from pathlib import Path
from trainer.data.format import Copies
from trainer.data.stage import stage
print(stage({place!r}, Path({str(scratch)!r}), Copies(), {ONE!r}))
"""
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True)


def until(ready: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_stopped_in_the_middle_of_a_shard_it_ends_at_once_and_goes_on_from_there(
    tmp_path: Path, s3_uri: str, s3_proxy: FaultyProxy, number: int
) -> None:
    place, index = noise(s3_uri, bytes=3 << 20, shards=1)
    shard, gate = index.splits["val"].sizes[0].shards[0], threading.Event()
    s3_proxy.requests.clear()
    s3_proxy.plan("GET", passes, cut_answer, *[hangs(gate)] * ATTEMPTS)  # the index; half of the shard; silence
    process = in_a_process(place, tmp_path)
    until(lambda: len(s3_proxy.requests) == 3)
    process.send_signal(number)
    signalled = time.monotonic()
    process.communicate(timeout=30)
    assert time.monotonic() - signalled < AT_ONCE
    assert process.returncode == -number
    s3_proxy.faults.clear()
    gate.set()
    part = tmp_path / f"datasets/noise/v1/{shard.file}.part"
    kept = part.stat().st_size
    assert 0 < kept < shard.bytes
    done: list[int] = []
    local = stage(place, tmp_path, COPIES, ONE, progress=done.append)
    assert sum(done) == shard.bytes - kept
    assert zlib.crc32((local / shard.file).read_bytes()) == shard.crc32
    assert files(local) == [INDEX, shard.file]


@pytest.mark.parametrize("size", [1, 2500, 5000, 5001, 9000])
def test_a_part_that_is_no_beginning_of_the_shard_is_overwritten(tmp_path: Path, s3_uri: str, size: int) -> None:
    place, index = noise(s3_uri)
    shard = index.splits["val"].sizes[0].shards[0]
    local = tmp_path / "datasets/noise/v1"
    local.mkdir(parents=True)
    (local / f"{shard.file}.part").write_bytes(bytes(size))
    stage(place, tmp_path, COPIES, ONE)
    assert (local / shard.file).read_bytes() == open_store(place).get(shard.file)


def test_s3_failing_in_the_middle_is_told_and_the_next_call_goes_on(
    tmp_path: Path, s3_uri: str, s3_proxy: FaultyProxy
) -> None:
    place, _ = noise(s3_uri)
    s3_proxy.plan("GET", passes, refuse(500, "InternalError"), passes, passes)  # one failure is not even seen
    stage(place, tmp_path / "first", COPIES, WANTED)

    def fails_after_one(forward: Forward) -> Answer | None:
        until(lambda: list((tmp_path / "second").rglob("*.arrow")))
        return refuse(500, "InternalError")(forward)

    s3_proxy.plan("GET", passes, passes, *[fails_after_one] * 20)
    with pytest.raises(StoreError, match=r"px-0000\d.arrow: InternalError: .*what has arrived is kept, start again"):
        stage(place, tmp_path / "second", COPIES, WANTED)
    (kept,) = (tmp_path / "second").rglob("*.arrow")
    s3_proxy.faults.clear()
    s3_proxy.requests.clear()
    local = stage(place, tmp_path / "second", COPIES, WANTED)
    assert digests(local) == digests(tmp_path / "first/datasets/noise/v1")
    assert not any(kept.name in line for line in s3_proxy.requests)


def test_an_error_of_one_shard_does_not_wait_for_another_that_hangs(
    tmp_path: Path, s3_uri: str, s3_proxy: FaultyProxy
) -> None:
    place, _ = noise(s3_uri)
    gate = threading.Event()
    s3_proxy.plan("GET", passes, refuse(403, "AccessDenied"), *[hangs(gate)] * 2 * ATTEMPTS)
    started = time.monotonic()
    with pytest.raises(StoreError, match="AccessDenied"):
        stage(place, tmp_path, COPIES, WANTED)
    assert time.monotonic() - started < AT_ONCE
    gate.set()


def test_two_at_once_share_the_work(tmp_path: Path, s3_uri: str, s3_proxy: FaultyProxy) -> None:
    place, index = noise(s3_uri)
    gate, shard = threading.Event(), index.splits["val"].sizes[0].shards[0]
    body = open_store(place).get(shard.file)
    s3_proxy.requests.clear()
    s3_proxy.plan("GET", *[stalls(gate, body)] * (2 + ATTEMPTS))  # an index for each, the shard for one of them
    first = in_a_process(place, tmp_path)
    until(lambda: len(s3_proxy.requests) == 2)  # the index, the shard
    second = in_a_process(place, tmp_path)
    assert second.stderr is not None
    assert "waiting for another process that fetches or verifies noise v1" in second.stderr.readline()
    gate.set()
    for process, copies in ((first, True), (second, False)):
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        assert ("copying" in errors) == copies
    assert (tmp_path / "datasets/noise/v1" / shard.file).read_bytes() == body


# A full disk


def test_too_little_room_is_told_before_the_start(tmp_path: Path, s3_uri: str, s3_proxy: FaultyProxy) -> None:
    place, index = noise(s3_uri)
    val = index.splits["val"]
    huge = replace(val.sizes[0], shards=(replace(val.sizes[0].shards[0], bytes=10**18),))
    splits = dict(index.splits) | {"val": replace(val, sizes=(huge,))}
    open_store(place).put(INDEX, replace(index, splits=splits).to_json().encode())
    s3_proxy.requests.clear()
    with pytest.raises(UserError, match=r"GB free, the shards still to fetch take 1,000,000,000.0 GB: free disk space"):
        stage(place, tmp_path, COPIES, WANTED)
    assert len(s3_proxy.requests) == 1


def test_a_disk_that_fills_up_meanwhile_is_told(tmp_path: Path, s3_uri: str) -> None:
    place, index = noise(s3_uri)
    local = tmp_path / "datasets/noise/v1"
    local.mkdir(parents=True)
    part = local / f"{index.splits['val'].sizes[0].shards[0].file}.part"
    part.symlink_to("/dev/full")  # the kernel refuses every write to it as a full disk does
    with pytest.raises(UserError, match=rf"{part.name}' cannot be used: .*No space left on device; free disk space"):
        stage(place, tmp_path, COPIES, WANTED)
    assert INDEX not in files(local)
    part.unlink()
    stage(place, tmp_path, COPIES, WANTED)
