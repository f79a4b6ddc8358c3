"""What only the store in a folder can get wrong."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from trainer.contract import UserError
from trainer.store import ConflictError, NotFoundError, StoreError, open_store


def test_a_folder_that_is_not_there_is_a_fault_and_no_empty_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for store in (open_store(str(tmp_path / "nowhere")), open_store(str(tmp_path / "file/below"))):
        for call in (
            store.get,
            store.info,
            store.retire,
            store.abort_uploads,
            lambda key, store=store: list(store.list(key)),
        ):
            with pytest.raises(StoreError) as caught:
                call("runs/a")
            assert not isinstance(caught.value, NotFoundError)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "file"]
    open_store(str(tmp_path / "nowhere")).put("runs/a", b"1")
    assert (tmp_path / "nowhere/runs/a").read_bytes() == b"1"


@pytest.mark.parametrize("folder", ["file", "file/below"])
def test_a_file_where_the_folder_should_be_fails_the_probe(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"name a folder: something on this path is a file"):
        open_store(str(tmp_path / folder)).probe("runs/a/probe")
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_a_folder_that_refuses_fails_the_probe() -> None:
    with pytest.raises(UserError, match=r"cannot be used: put /sys/.*make the folder writable"):
        open_store("/sys/kernel/store").probe("runs/a/probe")  # refuses root, too


def test_a_writer_waits_for_the_one_that_is_comparing_and_writing(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    etag = store.put("x", b"1")
    with ThreadPoolExecutor(1) as pool, (tmp_path / ".store-lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        write = pool.submit(store.replace, "x", b"2", etag)
        assert not wait([write], timeout=0.3).done
        assert store.get("x") == b"1"  # readers do not wait
        fcntl.flock(lock, fcntl.LOCK_UN)
        write.result(timeout=30)
    assert store.get("x") == b"2"


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_hard_links_exactly_one_of_many_creates_and_readers_see_whole_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def no_links(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", no_links)
    store = open_store(str(tmp_path))
    assert store.probe("checkpoints/a/probe", for_checkpoints=True) == ()

    def create(name: str) -> list[int]:
        won = []
        for key in range(20):
            try:
                store.create(f"attempts/{key}", name.encode() * 1000)
            except ConflictError:
                assert len(store.get(f"attempts/{key}")) == 1000
            else:
                won.append(key)
        return won

    with ThreadPoolExecutor(4) as pool:
        winners = [key for won in pool.map(create, "abcd") for key in won]
    assert sorted(winners) == list(range(20))
    assert [path.name for path in tmp_path.rglob(".store-*")] == [".store-lock"]


def test_a_file_system_without_locks_fails_the_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(UserError, match=r"No locks available; name a folder on a file system that has locks"):
        open_store(str(tmp_path)).probe("checkpoints/a/probe", for_checkpoints=True)


def limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def test_a_write_that_does_not_fit_leaves_the_old_object_and_nothing_else(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    etag = store.put("x", b"old")
    code = f"""
from trainer.store import StoreError, open_store
store, big = open_store({str(tmp_path)!r}), bytes(1_000_000)
for write in (lambda: store.put("x", big), lambda: store.replace("x", big, {etag!r}), lambda: store.create("y", big)):
    try:
        write()
    except StoreError as error:
        print(error.code)
"""
    done = subprocess.run([sys.executable, "-c", code], preexec_fn=limit_file_size, capture_output=True, check=True)
    assert done.stdout.split() == [b"EFBIG"] * 3
    assert store.get_with_etag("x") == (b"old", etag)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".store-lock", "x"]


def test_a_full_disk_fails_the_probe(tmp_path: Path) -> None:
    code = f"""
from trainer.contract import UserError
from trainer.store import open_store
try:
    open_store({str(tmp_path)!r}).probe("probe")
except UserError as error:
    print(error)
"""
    command = ["prlimit", "--fsize=0", sys.executable, "-c", code]  # no space for a single byte
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    assert f"cannot be used: put {tmp_path}/probe: File too large; free disk space" in done.stdout


def test_a_writer_killed_in_the_middle_leaves_no_object_and_no_lock(tmp_path: Path) -> None:
    code = f"""
import os, signal
from trainer.store import open_store
class Slow:
    pieces = [b"half"]
    def read(self, size):
        if self.pieces: return self.pieces.pop()
        os.kill(os.getpid(), signal.SIGKILL)
open_store({str(tmp_path)!r}).put("runs/a", Slow())
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=30)
    assert done.returncode == -signal.SIGKILL
    store = open_store(str(tmp_path))
    assert list(store.list("")) == []
    store.create("runs/a", b"whole")
    assert store.get("runs/a") == b"whole"


@pytest.mark.parametrize("has_links", [True, False])
def test_a_write_with_a_condition_looks_into_the_file_and_no_cache_of_attributes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    """A network folder may answer stat from a cache, and opening a file makes it ask the server."""
    store, stat = open_store(str(tmp_path)), os.stat
    etag, before = store.put("x", b"1"), stat(tmp_path / "x")
    store.put("x", b"of another machine")

    def cached(path: Any, *arguments: Any, **named: Any) -> os.stat_result:
        if str(path).endswith("/x"):
            return before
        if str(path).endswith("/y"):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return stat(path, *arguments, **named)

    def no_links(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    store.put("y", b"of another machine")
    monkeypatch.setattr(os, "stat", cached)
    monkeypatch.setattr(os, "lstat", cached)
    if not has_links:
        monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(ConflictError):
        store.replace("x", b"2", etag)
    with pytest.raises(ConflictError):
        store.create("y", b"2")
    assert store.get("x") == store.get("y") == b"of another machine"


def test_a_mount_that_answers_with_zeros_says_nothing_of_its_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path))
    assert store.free_bytes()
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result([4096, 4096] + [0] * 8))
    assert store.free_bytes() is None
