"""Stand-ins for what surrounds the training loop, so that a test runs it in its own process: data and uploader."""

from __future__ import annotations

import json
import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.images import encode, photo
from trainer.manifest import data_key
from trainer.process.channel import Channel, DisconnectedError, listen
from trainer.process.snapshot import Snapshot
from trainer.store import ObjectStore
from trainer.store.checksum import Checksums
from trainer.upload.commit import Commit
from trainer.upload.owner import Ownership

TRAIN_IMAGES, VAL_IMAGES, CLASSES = 8, 4, 2


class StandInSplit:
    """A few encoded images in memory, with the methods of a PreparedSplit."""

    def __init__(self, split: str, images: int):
        self.split, self.labels = split, np.arange(images) % CLASSES
        self.jpegs = [np.frombuffer(encode(photo(i, 32, 32)), np.uint8) for i in range(images)]

    def __len__(self) -> int:
        return len(self.jpegs)

    def jpeg(self, i: int) -> np.ndarray:
        return self.jpegs[i]

    def prefetch(self, indices: np.ndarray) -> None:
        pass

    def name(self, i: int) -> str:
        return f"image {i}"


class StandInData:
    """The prepared data of a run, as `stage_data` gives it."""

    def __init__(self) -> None:
        self.splits = {"train": StandInSplit("train", TRAIN_IMAGES), "val": StandInSplit("val", VAL_IMAGES)}
        size = SimpleNamespace(short_side=32)
        self.index = SimpleNamespace(
            splits={name: SimpleNamespace(images=len(split), sizes=[size]) for name, split in self.splits.items()},
            source=None, classes=tuple(map(str, range(CLASSES))),
            name="stand-in", version="1", fingerprint="f", sha256="0" * 64,
        )  # fmt: skip
        self.folder = Path("stand-in")

    def copies(self, split: str, pixels: int) -> Any:
        return (self.splits[split],)

    def open(self, split: str, pixels: int) -> Any:
        return self.splits[split]


@dataclass
class StandInUploader:
    """Takes what the trainer sends, in this process. What came, and what became of it, stands in order in `events`."""

    store: ObjectStore
    run_id: str
    attempt: int = 1
    answers: str = "committed"  # or "lost", "failed", or "nothing"
    ownership: Ownership | None = None  # which moves HEAD.json; without it, manifests alone count
    events: list[tuple[str, Any]] = field(default_factory=list)
    path: str = ""
    connected: bool = False

    def start(self) -> StandInUploader:
        server, self.path = listen()
        threading.Thread(target=self._serve, args=[server], daemon=True).start()
        return self

    def _serve(self, server: Any) -> None:
        channel = Channel(server.accept()[0])
        server.close()
        Path(self.path).unlink()
        Path(self.path).parent.rmdir()
        self.connected = True
        try:
            channel.send({"hello": self.attempt})
            while True:
                request, fd = channel.receive()
                if request["op"] == "checkpoint":
                    assert fd is not None
                    self._commit(request["seq"], Snapshot(fd), channel)
                else:
                    self._put(request, fd)
        except (DisconnectedError, OSError):
            channel.close()
            self.events.append(("closed", None))

    def _put(self, request: dict[str, Any], fd: int | None) -> None:
        if fd is not None:
            body = os.pread(fd, os.fstat(fd).st_size, 0)
            os.close(fd)
        else:
            body = json.dumps(request["body"]).encode()
        self.store.put(request["key"], body)
        self.events.append(("put", request["key"]))

    def _commit(self, seq: int, snapshot: Snapshot, channel: Channel) -> None:
        snapshot.lock(wait=True)
        note = snapshot.note
        if self.answers == "committed" and note["seq"] != seq:  # replaced by a newer save: the real one is silent, too
            snapshot.unlock()
            return
        if self.answers == "committed":
            owner, sums = self.ownership, Checksums.of(snapshot.body)
            commit = Commit.of(
                self.run_id, self.attempt, note["manifest"], sums, owner.parent_of(note["step"]) if owner else {}
            )
            commit.put(self.store, snapshot.body)
            for name in owner.commit(commit.key, commit.sha256, is_best=note["is_best"]) if owner else ():
                self.store.retire(data_key(name))
                self.store.retire(name)
            self.events.append(("checkpoint", note))
            answer = {"seq": seq, "step": note["step"], "committed": commit.key, "sha256": commit.sha256}
        else:
            answer = {"lost": "attempt 2 has taken the run over"} if self.answers == "lost" else {"seq": seq, "step": 0}
        snapshot.unlock()
        if self.answers != "nothing":
            with suppress(DisconnectedError):  # the trainer has gone; what it sent before counts all the same
                channel.send(answer)

    def stop(self) -> None:
        """Wait until the trainer's end is closed; also where the trainer never came."""
        if not self.connected:
            Channel.connect(self.path).close()
        deadline = time.monotonic() + 20
        while ("closed", None) not in self.events:
            assert time.monotonic() < deadline, self.events
            time.sleep(0.001)

    def steps(self) -> list[int]:
        """Of the checkpoints, in the order in which they were committed."""
        return [note["step"] for kind, note in self.events if kind == "checkpoint"]

    def stored(self) -> list[str]:
        return [key for kind, key in self.events if kind == "put"]


class Receiver:
    """The uploader's end: what was announced, and the memory that it came in."""

    def __init__(self, channel: Channel):
        self.channel, self.snapshots = channel, dict[int, Snapshot]()

    def receive(self) -> tuple[int, Snapshot]:
        message, fd = self.channel.receive(timeout=5)
        assert fd is not None
        inode = os.fstat(fd).st_ino
        if inode in self.snapshots:
            os.close(fd)
        else:
            self.snapshots[inode] = Snapshot(fd)
        return message["seq"], self.snapshots[inode]

    def committed(self, seq: int, name: str = "manifest") -> None:
        self.channel.send({"seq": seq, "step": 0, "committed": name})
