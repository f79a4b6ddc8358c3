"""Staging that is stopped or cut off, and that runs twice at once or on a full disk."""

from __future__ import annotations

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

from tests import PATIENCE, ROOT
from tests.emulator.s3 import Answer, FaultyProxy, Forward, cut_answer, refuse
from tests.images import digests
from tests.shards import COPIES, ONE, WANTED, files, noise, passes
from trainer.contract import UserError
from trainer.data.format import INDEX
from trainer.data.stage import stage
from trainer.store import StoreError, open_store

ATTEMPTS = 3  # of the client: a request that a silent server never answers costs it 15 seconds


AT_ONCE = 10  # seconds: less than that, and enough for a busy machine


def stalls(gate: threading.Event, body: bytes) -> Callable[[Forward], Answer]:
    """Those answers that have this body."""

    def wait(forward: Forward) -> Answer:
        answer = forward()
        if answer[2] == body:
            gate.wait(PATIENCE)
        return answer

    return wait


def hangs(gate: threading.Event) -> Callable[[Forward], None]:
    """For a client that is gone by then."""

    def wait(forward: Forward) -> None:
        gate.wait(PATIENCE)

    return wait


def in_a_process(place: str, scratch: Path) -> subprocess.Popen[str]:
    code = f"""
from pathlib import Path
from trainer.data.format import Copies
from trainer.data.stage import stage
print(stage({place!r}, Path({str(scratch)!r}), Copies(), {ONE!r}))
"""
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True)


def until(ready: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
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
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, errors
        assert ("copying" in errors) == copies
    assert (tmp_path / "datasets/noise/v1" / shard.file).read_bytes() == body


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
