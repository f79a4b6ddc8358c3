"""One suite of contract tests against both stores, S3 over HTTP; then what only one of them can get wrong."""

from __future__ import annotations

import fcntl
import io
import json
import multiprocessing
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, wait
from pathlib import Path

import boto3
import pytest

from tests.emulator.s3 import FaultyProxy, cut_answer, lose_answer, refuse
from trainer.contract import UserError
from trainer.store import ConflictError, NotFoundError, ObjectStore, StoreError, open_store
from trainer.store.s3 import S3Settings, S3Store

MIB = 1 << 20


@pytest.fixture(params=["directory", "s3"])
def store(request: pytest.FixtureRequest) -> ObjectStore:
    if request.param == "s3":
        return open_store(request.getfixturevalue("s3_uri"))
    folder: Path = request.getfixturevalue("tmp_path") / "store"
    folder.mkdir()
    return open_store(str(folder))


def streamed(store: ObjectStore, key: str, start: int, size: int, buffer: int = MIB) -> bytes:
    return b"".join(bytes(piece) for piece in store.stream(key, start, size, memoryview(bytearray(buffer))))


def bucket_and_prefix(uri: str) -> tuple[str, str]:
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    return bucket, prefix


# The contract


def test_what_was_put_is_read_back_whole_in_part_and_into_a_buffer(store: ObjectStore) -> None:
    body = bytes(range(256)) * 10
    etag = store.put("runs/a/x.bin", body)
    assert store.get("runs/a/x.bin") == body
    assert store.get_with_etag("runs/a/x.bin") == (body, etag)
    info = store.head("runs/a/x.bin")
    assert (info.key, info.bytes, info.etag) == ("runs/a/x.bin", len(body), etag)
    assert store.read_range("runs/a/x.bin", 250, 20) == body[250:270]
    assert store.read_range("runs/a/x.bin", len(body) - 1, 1) == body[-1:]
    for start, size in ((0, len(body)), (250, 20), (len(body) - 1, 1)):
        for buffer in (7, MIB):
            assert streamed(store, "runs/a/x.bin", start, size, buffer) == body[start : start + size]
    buffer = bytearray(len(body))
    store.read_into("runs/a/x.bin", memoryview(buffer))
    assert buffer == body


def test_an_empty_object_is_an_object(store: ObjectStore) -> None:
    store.put("empty", b"")
    assert store.get("empty") == b""
    assert store.head("empty").bytes == 0
    store.read_into("empty", memoryview(bytearray()))


def test_a_missing_key_is_not_found_by_every_read(store: ObjectStore) -> None:
    store.put("runs/a", b"1")
    for key in ("nothing", "runs", "runs/a/below", "runs/aa"):
        for read in (
            store.get,
            store.get_with_etag,
            store.head,
            lambda key: store.read_range(key, 0, 1),
            lambda key: streamed(store, key, 0, 1),
            lambda key: store.read_into(key, memoryview(bytearray(1))),
        ):
            with pytest.raises(NotFoundError, match=re.escape(store.describe(key))):
                read(key)


def test_a_range_or_buffer_that_does_not_fit_the_object_is_a_fault(store: ObjectStore) -> None:
    store.put("x", b"12345")
    for start, size in ((0, 6), (4, 2), (5, 1), (9, 1)):
        for read in (store.read_range, lambda *arguments: streamed(store, *arguments)):
            with pytest.raises(StoreError) as caught:
                read("x", start, size)
            assert caught.value.code == "InvalidRange"
    for size in (0, 4, 6):
        with pytest.raises(StoreError, match=f"has 5 bytes.*not {size}"):
            store.read_into("x", memoryview(bytearray(size)))
    for start, size in ((-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="not a range"):
            store.read_range("x", start, size)
        with pytest.raises(ValueError, match="not a range"):
            streamed(store, "x", start, size)


def test_a_large_file_is_put_from_its_position_and_restored_byte_for_byte(store: ObjectStore, tmp_path: Path) -> None:
    body = os.urandom(1 * MIB) * 40 + b"tail"
    path = tmp_path / "large"
    path.write_bytes(b"header" + body)
    with path.open("rb") as file:
        file.seek(6)
        etag = store.put("checkpoints/a/data/1", file)
    assert store.head("checkpoints/a/data/1").etag == etag
    assert store.head("checkpoints/a/data/1").bytes == len(body)
    buffer = bytearray(len(body))
    store.read_into("checkpoints/a/data/1", memoryview(buffer))
    assert buffer == body
    assert store.read_range("checkpoints/a/data/1", 16 * MIB - 2, 4) == body[16 * MIB - 2 : 16 * MIB + 2]


def test_a_list_is_by_prefix_sorted_and_shows_nothing_but_objects(store: ObjectStore) -> None:
    keys = ["runs/b/1", "runs/a/2", "runs/a/10", "runs/ab", "runs.txt", "checkpoints/a"]
    for key in keys:
        store.create(key, key.encode())
        store.replace(key, key.encode() * 2, store.head(key).etag)
    assert [info.key for info in store.list("")] == sorted(keys)
    assert [info.key for info in store.list("runs/a")] == ["runs/a/10", "runs/a/2", "runs/ab"]
    assert [info.key for info in store.list("runs/a/")] == ["runs/a/10", "runs/a/2"]
    assert list(store.list("runs/c/")) == []
    assert list(store.list("runs/ab/")) == []
    assert list(store.list("runs/ab")) == [store.head("runs/ab")]


def test_create_writes_once(store: ObjectStore) -> None:
    etag = store.create("runs/a/spec.json", b"one")
    for body in (b"two", b"one"):
        with pytest.raises(ConflictError, match=re.escape(store.describe("runs/a/spec.json"))):
            store.create("runs/a/spec.json", body)
    assert store.get_with_etag("runs/a/spec.json") == (b"one", etag)


def test_replace_writes_only_over_what_was_read(store: ObjectStore) -> None:
    with pytest.raises(ConflictError):
        store.replace("HEAD.json", b"0", '"none"')
    with pytest.raises(NotFoundError):
        store.get("HEAD.json")
    first = store.put("HEAD.json", b"1")
    second = store.replace("HEAD.json", b"2", first)
    assert second != first
    with pytest.raises(ConflictError, match=re.escape(store.describe("HEAD.json"))):
        store.replace("HEAD.json", b"3", first)
    assert store.get_with_etag("HEAD.json") == (b"2", second)
    third = store.put("HEAD.json", b"3")
    with pytest.raises(ConflictError):
        store.replace("HEAD.json", b"4", second)
    store.replace("HEAD.json", b"4", third)
    assert store.get("HEAD.json") == b"4"


def test_no_two_contents_share_an_etag_however_fast_they_follow(store: ObjectStore) -> None:
    etags = {store.put("HEAD.json", b"%03d" % number) for number in range(100)}
    assert len(etags) == 100


def test_a_retired_object_may_be_put_again_and_a_missing_one_be_retired(store: ObjectStore) -> None:
    store.put("checkpoints/a/1", b"old")
    store.retire("checkpoints/a/1")
    store.put("checkpoints/a/1", b"new")
    assert store.get("checkpoints/a/1") == b"new"
    store.retire("checkpoints/a/2")
    store.retire("checkpoints/a/1/below")


def test_what_is_no_key_is_refused_before_anything_is_touched(store: ObjectStore) -> None:
    for key in ("", "/etc/passwd", "../x", "a/../../x", "a//b", "a/", "./a", "a/.store-lock", "a\0b"):
        for call in (
            store.get,
            store.head,
            store.retire,
            store.probe,
            store.describe,
            lambda key: store.put(key, b""),
            lambda key: store.create(key, b""),
            lambda key: store.replace(key, b"", "etag"),
            lambda key: store.read_range(key, 0, 1),
            lambda key: streamed(store, key, 0, 1),
            lambda key: store.read_into(key, memoryview(bytearray(1))),
        ):
            with pytest.raises(ValueError, match="is not a key"):
                call(key)
    for prefix in ("/", "..", "../", "a//", "/etc"):
        with pytest.raises(ValueError, match="is not a prefix"):
            list(store.list(prefix))
    assert list(store.list("")) == []


def test_a_probe_that_finds_all_well_leaves_one_object(store: ObjectStore) -> None:
    store.probe("runs/a/probe")
    store.probe("runs/a/probe")
    assert [info.key for info in store.list("")] == ["runs/a/probe"]


def test_the_description_names_the_place_in_full(store: ObjectStore) -> None:
    assert store.describe("runs/a") == f"{store.uri}/runs/a"
    assert open_store(store.uri).uri == store.uri


def test_readers_see_the_old_object_or_the_new_one(store: ObjectStore) -> None:
    bodies = [bytes([letter]) * MIB for letter in b"abcd"]
    store.put("x", bodies[0])
    stop, seen = threading.Event(), set()

    def read() -> None:
        buffer = bytearray(MIB)
        while not stop.is_set():
            body = store.get("x")
            assert body in bodies
            seen.add(body[:1])
            try:
                store.read_into("x", memoryview(buffer))
            except StoreError as error:  # a retried read found another object: refused, not mixed
                assert error.code == "PreconditionFailed"  # noqa: PT017
            assert buffer in bodies

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        deadline = time.monotonic() + 30
        while (len(seen) < 4) and time.monotonic() < deadline and not any(reader.done() for reader in readers):
            for body in bodies:
                store.put("x", body)
        stop.set()
        for reader in readers:
            reader.result()
    assert len(seen) == 4


def in_threads_and_processes(task: Callable[[str, str], object], uri: str) -> list[object]:
    """The task with the store's URI and a name of its own, in two processes of three threads each."""
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(in_threads, task, uri, f"process {number}") for number in range(2)]
        return [result for future in futures for result in future.result()]


def in_threads(task: Callable[[str, str], object], uri: str, name: str) -> list[object]:
    with ThreadPoolExecutor(3) as pool:
        return [f.result() for f in [pool.submit(task, uri, f"{name} thread {number}") for number in range(3)]]


def create_all(uri: str, name: str) -> list[str]:
    store, won = open_store(uri), []
    for number in range(15):
        try:
            store.create(f"attempts/{number}.json", name.encode())
        except ConflictError:
            continue
        won.append(f"attempts/{number}.json")
    return [f"{key} {name}" for key in won]


def rounds(uri: str) -> int:
    return 8 if uri.startswith("s3://") else 100


def count_up(uri: str, name: str) -> int:
    store, refused = open_store(uri), 0
    for _ in range(rounds(uri)):
        while True:
            body, etag = store.get_with_etag("counter")
            try:
                store.replace("counter", b"%d" % (int(body) + 1), etag)
            except ConflictError:
                refused += 1
                continue
            break
    return refused


def test_of_many_creators_exactly_one_wins(store: ObjectStore) -> None:
    winners = [line for won in in_threads_and_processes(create_all, store.uri) for line in won]  # type: ignore[attr-defined]
    assert sorted(winners) == sorted(f"{info.key} {store.get(info.key).decode()}" for info in store.list("attempts/"))
    assert len(winners) == 15


def test_concurrent_replacements_lose_no_update(store: ObjectStore) -> None:
    store.put("counter", b"1000")  # the size stays the same: etags must not hang on it
    refused = in_threads_and_processes(count_up, store.uri)
    assert int(store.get("counter")) == 1000 + 6 * rounds(store.uri)
    assert sum(refused) > 0, "the workers never met: the test proves nothing"  # type: ignore[arg-type]


# Opening


@pytest.mark.parametrize(
    "uri",
    ["", " ", "s3:/bucket", "s3//bucket", "s3:bucket", "s3://", "s3:///prefix", "S3://bucket", "s3a://bucket/x", "gs://b/x",
     "https://bucket.s3.amazonaws.com/x", "file://relative", "file:/x", "s3://Bucket/x", "s3://b", "s3://bucket//x",
     "s3://bucket/a/../b"],
)  # fmt: skip
def test_a_mistyped_uri_is_refused_with_value_rule_and_fix(uri: str) -> None:
    with pytest.raises(UserError) as caught:
        open_store(uri)
    assert repr(uri) in str(caught.value)
    assert "a store is s3://bucket/prefix or a folder" in str(caught.value)
    assert "; write " in str(caught.value)


def test_a_folder_may_be_named_in_every_usual_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for uri in ("a b", "./a b", f"{tmp_path}/a b", f"file://{tmp_path}/a%20b", "~/a b"):
        assert open_store(uri).describe("k") == f"{tmp_path}/a b/k"


def test_a_bucket_needs_no_prefix(s3_uri: str) -> None:
    bucket, prefix = bucket_and_prefix(s3_uri)
    for uri in (f"s3://{bucket}", f"s3://{bucket}/"):
        top = open_store(uri)
        assert top.uri == f"s3://{bucket}"
        assert top.describe("k") == f"s3://{bucket}/k"
        open_store(s3_uri).put("k", b"1")
        assert [info.key for info in top.list("")] == [f"{prefix}/k"]


def test_settings_of_aws_that_boto3_refuses_are_the_users_to_correct(
    s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in (("AWS_PROFILE", "no-such-profile"), ("AWS_ENDPOINT_URL", "localhost:9000")):
        with monkeypatch.context() as patch:
            patch.setenv(variable, value)
            with pytest.raises(UserError, match=value) as caught:
                open_store(s3_uri)
        assert variable in str(caught.value)


def test_boto3_is_imported_only_for_s3(tmp_path: Path) -> None:
    code = f"""
import sys; before = set(sys.modules)
from trainer.store import open_store
open_store({str(tmp_path)!r}).probe("probe")
foreign = {{name.partition(".")[0] for name in set(sys.modules) - before}} - set(sys.stdlib_module_names)
assert foreign == {{"trainer"}}, foreign
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


# The directory's own faults


def test_a_folder_that_is_not_there_is_a_fault_and_no_empty_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for store in (open_store(str(tmp_path / "nowhere")), open_store(str(tmp_path / "file/below"))):
        for call in (store.get, store.head, store.retire, lambda key, store=store: list(store.list(key))):
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


# S3's own faults


def test_a_missing_bucket_is_never_a_missing_key(s3_uri: str) -> None:
    store = open_store("s3://no-such-bucket-here/prefix")
    for call in (store.get, store.head, store.retire, lambda key: list(store.list(key))):
        with pytest.raises(StoreError) as caught:
            call("runs/a")
        assert not isinstance(caught.value, NotFoundError)
        assert caught.value.code == "NoSuchBucket"
    with pytest.raises(UserError, match=r"s3://no-such-bucket-here.*NoSuchBucket.*create the bucket"):
        store.probe("runs/a/probe")


def test_an_endpoint_that_does_not_answer_is_a_fault_and_fails_the_probe(
    s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as listener:  # bound, not listening: refuses
        listener.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
        store = S3Store(*bucket_and_prefix(s3_uri), S3Settings(attempts=1))
        for call in (store.get, store.head, store.retire, lambda key: list(store.list(key))):
            with pytest.raises(StoreError) as caught:
                call("runs/a")
            assert caught.value.code == "EndpointConnectionError"
        with pytest.raises(UserError, match=r"127\.0\.0\.1.*check the network, and AWS_ENDPOINT_URL"):
            store.probe("runs/a/probe")


def test_an_endpoint_that_hangs_is_given_up(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # the kernel accepts, nobody answers
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
        store = S3Store(*bucket_and_prefix(s3_uri), S3Settings(attempts=1, read_timeout_seconds=0.3))
        started = time.monotonic()
        with pytest.raises(StoreError, match=r"get s3://.*/runs/a: ") as caught:
            store.get("runs/a")
        assert caught.value.code == "ReadTimeoutError"
        assert time.monotonic() - started < 3


def test_without_credentials_the_probe_says_which_to_give(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(UserError, match=r"Unable to locate credentials.*AWS_PROFILE"):
        open_store(s3_uri).probe("runs/a/probe")


@pytest.mark.parametrize(
    ("status", "code", "fix"),
    [(403, "AccessDenied", "allow the role"), (400, "ExpiredToken", "give credentials that are valid"),
     (403, "RequestTimeTooSkewed", "set the clock")],
)  # fmt: skip
def test_a_refusal_is_a_fault_of_every_operation_and_fails_the_probe(
    s3_uri: str, s3_proxy: FaultyProxy, status: int, code: str, fix: str
) -> None:
    store = open_store(s3_uri)
    for method, call in (
        ("GET", store.get),
        ("HEAD", store.head),
        ("GET", lambda key: list(store.list(key))),
        ("PUT", lambda key: store.put(key, b"")),
        ("PUT", lambda key: store.create(key, b"")),
        ("PUT", lambda key: store.replace(key, b"", "etag")),
        ("PUT", store.retire),
    ):
        s3_proxy.plan(method, *[refuse(status, code)] * 3)  # botocore asks again if another region might help
        with pytest.raises(StoreError, match=re.escape(store.describe("runs/a"))) as caught:
            call("runs/a")
        assert not isinstance(caught.value, NotFoundError | ConflictError)
        assert caught.value.code in (code, str(status))
        s3_proxy.faults.clear()
    s3_proxy.plan("PUT", refuse(status, code))
    with pytest.raises(UserError, match=fix):
        store.probe("runs/a/probe")


def test_a_passing_fault_of_the_server_is_tried_again_and_a_lasting_one_reported(
    s3_uri: str, s3_proxy: FaultyProxy
) -> None:
    store = open_store(s3_uri)
    s3_proxy.plan("PUT", refuse(503, "SlowDown"))
    store.put("x", b"1")
    s3_proxy.plan("GET", refuse(500, "InternalError"))
    assert store.get("x") == b"1"
    store = S3Store(*bucket_and_prefix(s3_uri), S3Settings(attempts=1))
    s3_proxy.plan("GET", refuse(503, "SlowDown"))
    with pytest.raises(StoreError) as caught:
        store.get("x")
    assert caught.value.code == "SlowDown"
    s3_proxy.plan("PUT", refuse(503, "SlowDown"))
    with pytest.raises(StoreError):  # not the user's to change
        store.probe("x")


def test_a_lost_acknowledgement_does_not_turn_a_winner_into_a_loser(s3_uri: str, s3_proxy: FaultyProxy) -> None:
    store = open_store(s3_uri)
    s3_proxy.plan("PUT", lose_answer)
    etag = store.create("attempts/1.json", b"mine")
    assert store.get_with_etag("attempts/1.json") == (b"mine", etag)
    s3_proxy.plan("PUT", lose_answer)
    newer = store.replace("attempts/1.json", b"mine too", etag)
    assert store.get_with_etag("attempts/1.json") == (b"mine too", newer)
    assert len([line for line in s3_proxy.requests if line.startswith("PUT")]) == 4


def test_a_lost_request_does_not_turn_a_loser_into_a_winner(s3_uri: str, s3_proxy: FaultyProxy) -> None:
    store = open_store(s3_uri)
    store.put("attempts/1.json", b"theirs")
    etag = store.head("attempts/1.json").etag
    s3_proxy.plan("PUT", lambda forward: None)
    with pytest.raises(ConflictError):
        store.create("attempts/1.json", b"mine")
    store.put("attempts/1.json", b"theirs again")
    s3_proxy.plan("PUT", lambda forward: None)
    with pytest.raises(ConflictError):
        store.replace("attempts/1.json", b"mine", etag)
    assert store.get("attempts/1.json") == b"theirs again"


def test_a_conditional_write_that_meets_another_one_under_way_is_tried_again(
    s3_uri: str, s3_proxy: FaultyProxy
) -> None:
    store = open_store(s3_uri)
    s3_proxy.plan("PUT", refuse(409, "ConditionalRequestConflict"))
    store.create("x", b"1")
    assert store.get("x") == b"1"
    s3_proxy.plan("PUT", *[refuse(409, "ConditionalRequestConflict")] * 3)
    with pytest.raises(StoreError) as caught:
        store.create("y", b"1")
    assert not isinstance(caught.value, ConflictError)


def test_a_body_cut_off_is_read_on_from_there(s3_uri: str, s3_proxy: FaultyProxy) -> None:
    store, body = open_store(s3_uri), os.urandom(4 * MIB)
    store.put("x", body)
    s3_proxy.plan("GET", cut_answer, cut_answer)
    buffer = bytearray(len(body))
    store.read_into("x", memoryview(buffer))
    assert buffer == body
    s3_proxy.plan("GET", cut_answer)
    assert store.get("x") == body
    s3_proxy.plan("GET", cut_answer)
    assert store.read_range("x", 1000, 2 * MIB) == body[1000 : 1000 + 2 * MIB]
    s3_proxy.plan("GET", cut_answer, cut_answer)
    assert streamed(store, "x", 1000, 3 * MIB, buffer=70_000) == body[1000 : 1000 + 3 * MIB]
    s3_proxy.plan("GET", *[cut_answer] * 3)
    with pytest.raises(StoreError, match="cut off 3 times"):
        store.get("x")


def test_an_object_changed_between_two_halves_is_not_mixed(s3_uri: str, s3_proxy: FaultyProxy) -> None:
    store = open_store(s3_uri)
    store.put("x", b"a" * MIB)

    def cut_and_change(forward: Callable[[], tuple[int, dict[str, str], bytes]]) -> tuple[int, dict[str, str], bytes]:
        answer = cut_answer(forward)
        store.put("x", b"b" * MIB)
        return answer

    for read in (store.get, lambda key: streamed(store, key, 0, MIB)):
        s3_proxy.plan("GET", cut_and_change)
        with pytest.raises(StoreError) as caught:
            read("x")
        assert caught.value.code == "PreconditionFailed"
        assert not isinstance(caught.value, ConflictError)
        store.put("x", b"a" * MIB)


def test_an_answer_that_goes_on_elsewhere_than_asked_is_not_mixed_in(s3_uri: str, s3_proxy: FaultyProxy) -> None:
    store = open_store(s3_uri)
    store.put("x", os.urandom(MIB))
    whole: list[tuple[int, dict[str, str], bytes]] = []

    def cut_and_keep(forward: Callable[[], tuple[int, dict[str, str], bytes]]) -> tuple[int, dict[str, str], bytes]:
        whole.append(forward())
        return cut_answer(lambda: whole[0])

    s3_proxy.plan("GET", cut_and_keep, lambda forward: whole[0])
    with pytest.raises(StoreError, match=f"{MIB} bytes follow byte {MIB // 2} there"):
        store.get("x")


def test_damage_on_the_way_is_noticed(s3_uri: str, s3_proxy: FaultyProxy) -> None:
    store = open_store(s3_uri)
    store.put("x", b"a" * 1000)

    def damage(forward: Callable[[], tuple[int, dict[str, str], bytes]]) -> tuple[int, dict[str, str], bytes]:
        status, headers, body = forward()
        return status, headers, b"b" + body[1:]

    s3_proxy.plan("GET", damage)
    with pytest.raises(StoreError) as caught:
        store.get("x")
    assert caught.value.code == "FlexibleChecksumError"


def test_a_large_put_that_fails_leaves_the_old_object_and_no_parts(s3_uri: str, s3_proxy: FaultyProxy) -> None:
    store = open_store(s3_uri)
    store.put("x", b"old")
    s3_proxy.plan("PUT", *[refuse(403, "AccessDenied")] * 3)
    with pytest.raises(StoreError, match=re.escape(store.describe("x"))):
        store.put("x", io.BytesIO(bytes(40 * MIB)))
    assert store.get("x") == b"old"
    uploads = boto3.session.Session().client("s3").list_multipart_uploads(Bucket=bucket_and_prefix(s3_uri)[0])
    assert uploads.get("Uploads", []) == []


def test_a_list_goes_through_all_pages(s3_uri: str, s3_proxy: FaultyProxy) -> None:
    store = S3Store(*bucket_and_prefix(s3_uri), S3Settings(page_keys=10))
    keys = [f"metrics/{number:03}" for number in range(35)]
    for key in keys:
        store.put(key, b"")
    s3_proxy.requests.clear()
    assert [info.key for info in store.list("metrics/")] == keys
    assert len(s3_proxy.requests) == 4


def test_the_folder_markers_of_the_aws_console_are_no_objects(s3_uri: str) -> None:
    bucket, prefix = bucket_and_prefix(s3_uri)
    for marker in (f"{prefix}/", f"{prefix}/runs/"):
        boto3.session.Session().client("s3").put_object(Bucket=bucket, Key=marker)
    store = open_store(s3_uri)
    store.put("runs/a", b"")
    assert [info.key for info in store.list("")] == ["runs/a"]


def test_a_retired_object_bears_the_tag_that_the_lifecycle_looks_for(s3_uri: str) -> None:
    store = open_store(s3_uri)
    store.put("checkpoints/a/1", b"old")
    store.retire("checkpoints/a/1")
    bucket, prefix = bucket_and_prefix(s3_uri)
    tags = boto3.session.Session().client("s3").get_object_tagging(Bucket=bucket, Key=f"{prefix}/checkpoints/a/1")
    assert tags["TagSet"] == [{"Key": "superseded", "Value": "true"}]


@pytest.fixture
def training_role(s3_uri: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """From here on the endpoint enforces permissions, and this process has only those of the training role."""
    iam = boto3.session.Session().client("iam")
    user = f"training-{uuid.uuid4().hex}"
    iam.create_user(UserName=user)
    allowed = ["ListBucket", "GetObject", "PutObject", "PutObjectTagging", "AbortMultipartUpload"]
    statement = {"Effect": "Allow", "Action": [f"s3:{action}" for action in allowed], "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    iam.put_user_policy(UserName=user, PolicyName="training", PolicyDocument=policy)
    key = iam.create_access_key(UserName=user)["AccessKey"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])

    def enforce_after(calls: str) -> None:
        plain = {"Content-Type": "text/plain"}
        request = urllib.request.Request(f"{s3_endpoint}/moto-api/reset-auth", calls.encode(), plain, method="POST")
        urllib.request.urlopen(request, timeout=10).close()

    enforce_after("0")
    yield
    enforce_after("inf")


def test_the_store_needs_no_permission_but_to_list_get_put_tag_and_abort(s3_uri: str, training_role: None) -> None:
    store = open_store(s3_uri)
    store.probe("runs/a/probe")
    store.replace("x", b"2", store.create("x", b"1"))
    store.put("large", io.BytesIO(bytes(17 * MIB)))
    store.read_into("large", memoryview(bytearray(17 * MIB)))
    with pytest.raises(NotFoundError):
        store.head("nothing")
    store.retire("large")
    assert [info.key for info in store.list("")] == ["large", "runs/a/probe", "x"]
    bucket, prefix = bucket_and_prefix(s3_uri)
    with pytest.raises(Exception, match="AccessDenied"):  # the endpoint does enforce
        boto3.session.Session().client("s3").delete_object(Bucket=bucket, Key=f"{prefix}/x")


def test_credentials_that_nobody_knows_fail_the_probe(
    s3_uri: str, training_role: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAUNKNOWN")
    with pytest.raises(UserError, match=r"InvalidAccessKeyId.*give credentials that are valid"):
        open_store(s3_uri).probe("runs/a/probe")
