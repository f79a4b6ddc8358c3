"""From the bytes of a checkpoint to a verified live state, against one copy of it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import cast

import torch

from benchmarks.checkpoint_worker import Memcpy, training_state
from trainer.checkpoint.layout import Layout
from trainer.checkpoint.restore import READERS, load, read_object, tensors_of
from trainer.process.snapshot import Snapshot
from trainer.store import ObjectInfo, ObjectStore
from trainer.store.checksum import Checksums, crc64

TIMES = 5


class InMemory:
    """What `read_object` asks of a store, answered by a copy."""

    def __init__(self, body: memoryview):
        self.body = body

    def info(self, key: str) -> ObjectInfo:
        return ObjectInfo(key, len(self.body), "")

    def read_into(self, key: str, buffer: memoryview, start: int = 0) -> None:
        buffer[:] = self.body[start : start + len(buffer)]


def verify_and_copy(pipe: Connection, name: str) -> None:
    """Answers "times" with the ratios to a copy: from a buffer in memory, and through the reader, from a store that is
    a buffer in memory (which adds fresh memory, and a copy into it)."""
    state = training_state()
    memcpy, layout = Memcpy(state), Layout.of(state)
    snapshot = Snapshot.create(layout.bytes)
    snapshot.body[: len(layout.header)] = layout.header
    for view_name, view in layout.views(torch.frombuffer(snapshot.body, dtype=torch.uint8), state).items():
        view.copy_(state[view_name])
    body = snapshot.body
    expected = Checksums.of(body)
    manifest = {"object": {"key": "key", **expected.to_json()}}
    store = cast(ObjectStore, InMemory(body))

    def is_right(number: int) -> bool:
        start = number * expected.part_bytes
        return crc64(body[start : start + expected.part_bytes]) == expected.parts[number]

    def from_buffer() -> None:
        with ThreadPoolExecutor(READERS) as pool:
            assert all(pool.map(is_right, range(len(expected.parts))))
        load(tensors_of(body), state, "key")

    def through_reader() -> None:
        load(tensors_of(read_object(store, manifest)), state, "key")

    pipe.send(None)
    while pipe.recv() != "close":
        found = []
        for _ in range(TIMES):
            copy, _ = memcpy.seconds()
            begin = time.perf_counter()
            from_buffer()
            middle = time.perf_counter()
            through_reader()
            found.append(((middle - begin) / copy, (time.perf_counter() - middle) / copy))
        pipe.send(found)
