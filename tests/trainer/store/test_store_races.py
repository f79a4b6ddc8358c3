"""Many readers and writers at once, in threads and processes, against both stores."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest

from tests.stores import MIB
from trainer.store import ConflictError, ObjectStore, StoreError, open_store

pytestmark = pytest.mark.slow


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
