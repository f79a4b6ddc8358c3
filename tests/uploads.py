"""Drives an uploader process as a trainer does, for the tests."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from tests.checkpoints import RUN, note
from tests.emulator.s3 import FaultyProxy
from tests.runs import is_stopped
from trainer.process.channel import Channel
from trainer.process.children import UploaderProcess
from trainer.process.snapshot import Snapshot
from trainer.store import open_store
from trainer.store.directory import DirectoryStore

Start = Callable[..., UploaderProcess]
Connect = Callable[[UploaderProcess], Channel]


def send_checkpoint(channel: Channel, step: int, body: bytes, *, is_best: bool = False) -> Snapshot:
    """Hand over the bytes in a memory of their own."""
    snapshot = Snapshot.create(len(body))
    snapshot.body[:] = body
    snapshot.note = note(step) | {"is_best": is_best}
    channel.send({"op": "checkpoint", "seq": step}, snapshot.fd)
    return snapshot


def send_segment(channel: Channel, name: str, body: bytes) -> None:
    """Hand over the bytes as a segment of the first attempt's metrics."""
    fd = in_memory(body)
    channel.send({"op": "put", "key": f"runs/{RUN}/metrics/1/{name}.jsonl"}, fd)
    os.close(fd)


def in_memory(body: bytes) -> int:
    """The descriptor of a file that has the bytes and no name."""
    fd = os.memfd_create("test")
    os.write(fd, body)
    return fd


def is_drained(uploader: UploaderProcess) -> bool:
    end = time.monotonic() + 30
    return bool(uploader.flush(lambda: end)["drained"])


def wait_until_settled(proxy: FaultyProxy) -> None:
    """What an uploader writes when it starts: heartbeat, claim, end of the sweep."""

    def puts(name: str) -> int:
        return sum(request.startswith("PUT") and name in request for request in proxy.requests)

    wait_until(lambda: puts("HEAD.json") >= 2 and puts("heartbeat.json") >= 1)


def answer(channel: Channel) -> dict[str, Any]:
    return channel.receive(timeout=30)[0]


def uploader_is_idle(channel: Channel) -> None:
    """An answer means that everything before it is done, and the queue is worked off in order."""
    send_checkpoint(channel, 6, b"x")
    answer(channel)


def stop_between_writes(pid: int, uri: str) -> None:
    """SIGSTOP while it writes nothing. A writer that stands would keep the lock of a folder, and all others out."""
    store = open_store(uri)
    with store._lock() if isinstance(store, DirectoryStore) else nullcontext():
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: is_stopped(pid))


def wait_until(ready: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "time ran out"
        time.sleep(0.02)
