"""The observer's end in the uploader: its samples and report go to the store, and it hears of rows and checkpoints.

The observer has a socket of its own and never claims the run. It may die or hang at any time: nothing here waits for
it, no checkpoint waits for what it sent, and nothing of it decides whether the run ends well.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.contract import run_key
from trainer.process.channel import Channel, DisconnectedError, Message, may_be_read, observer_socket
from trainer.store import ObjectStore, StoreError
from trainer.store.retry import Retry
from trainer.text import say
from trainer.upload.owner import Ownership

OBSERVED_FILE_BYTES = 1 << 16  # of observed.json at most: the observer writes a quarter of it
OLDEST_SAMPLE_SECONDS = 60.0  # an observer that works writes every ten
GRACE_SECONDS = 2.0  # how long the end of an attempt waits for what the observer has sent
MOST_OBSERVED_BYTES = 16 << 20  # of one object: a report has a tenth of it


class ObserverPort:
    """Takes one observer at a time. `copy(key, segment)` makes TensorBoard's copy of a segment of samples."""

    def __init__(self, store: ObjectStore, ownership: Ownership, copy: Callable[[str, bytes], None]):
        self.store, self.ownership, self.copy = store, ownership, copy
        run_id, attempt = ownership.run_id, ownership.attempt
        self.samples, self.report = run_key(run_id, f"telemetry/{attempt}/"), run_key(run_id, "report/")
        self.metrics = run_key(run_id, "metrics/")
        self.retry = Retry(lambda line: say(f"uploader: {line}"))
        self.idle = threading.Event()  # nothing is being stored
        self.idle.set()
        self.server: socket.socket | None = None
        self.channel: Channel | None = None
        self.path = Path()

    def open(self, path: str) -> None:
        """Listen beside the socket of the trainer. Where that fails, the run has no observer."""
        self.path = observer_socket(path)
        server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            server.bind(str(self.path))
            server.listen(1)
        except OSError as error:
            server.close()
            say(f"uploader: nothing is measured in this attempt, since there is no socket for it: {error}")
            return
        self.server = server
        threading.Thread(target=self.serve, args=[server], daemon=True, name="observer").start()

    def serve(self, server: socket.socket) -> None:
        while True:
            self.channel = Channel(server.accept()[0])
            try:
                while True:
                    self.idle.set()
                    may_be_read(self.channel.connection.fileno(), None)
                    self.idle.clear()  # before the message is taken, so that `is_done` is never wrong
                    self.take(*self.channel.receive())
            except (DisconnectedError, OSError):
                pass  # it has ended: the supervisor knows why
            finally:
                self.idle.set()
                channel, self.channel = self.channel, None
                channel.close()

    def take(self, request: Message, fd: int | None) -> None:
        """Store the bytes behind the descriptor, unless another attempt owns the run or the deadline has passed."""
        if fd is None:
            return
        try:
            key, body = str(request["key"]), os.pread(fd, MOST_OBSERVED_BYTES, 0)
        finally:
            os.close(fd)
        if not key.startswith((self.samples, self.report)) or not self.ownership.is_mine:
            return
        if key.startswith(self.report) and self.retry.has_an_end:  # the report of the whole run is made then
            return
        try:
            self.retry.until_done(
                lambda: self.store.put(key, body),
                lambda left: f"the store fails, trying {key} again, and training goes on",
            )
            if key.startswith(self.samples):
                self.copy(key, body)
        except (StoreError, ValueError) as error:
            self.retry.complain(f"gave up on {key}, and training goes on: {error}")

    def tell_segment(self, request: Message, fd: int | None) -> None:
        """What the trainer has just handed over, if it is a segment of metrics."""
        if fd is not None and str(request["key"]).startswith(self.metrics):
            self.tell({"segment": request["key"]}, fd)

    def tell_commit(self, note: Message) -> None:
        self.tell({"committed": note["step"], "is_best": note["is_best"]})

    def tell(self, message: Message, fd: int | None = None) -> None:
        """Send it to the observer, if there is one and it reads. Never waits."""
        if (channel := self.channel) is None:
            return
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [fd]))] if fd is not None else []
        with contextlib.suppress(OSError):  # it is gone, or does not read
            channel.connection.sendmsg([json.dumps(message).encode()], rights, socket.MSG_DONTWAIT)

    def drain(self, seconds: float) -> None:
        """After the end of the trainer: give what was sent a moment, and what the store does not take no more."""
        until = time.monotonic() + min(seconds, GRACE_SECONDS)
        self.retry.end_in(min(seconds, GRACE_SECONDS))
        while not self.is_done() and time.monotonic() < until:
            time.sleep(0.01)

    def is_done(self) -> bool:
        """Whether all that the observer has sent so far is stored, or given up."""
        channel = self.channel
        try:
            is_read = channel is None or not may_be_read(channel.connection.fileno(), 0)
        except (OSError, ValueError):  # it was closed a moment ago
            return False
        return is_read and self.idle.is_set()

    def close(self) -> None:
        if self.server is not None:
            self.path.unlink(missing_ok=True)


def read_observed(folder: Path) -> dict[str, Any]:
    """What the observer has left in `observed.json` for the heartbeat; {} where there is nothing of use.

    The sample of one that has died or hangs is left out: it would pass for one of now.
    """
    try:
        with (folder / "observed.json").open("rb") as file:
            body = file.read(OBSERVED_FILE_BYTES + 1)
        found = json.loads(body) if len(body) <= OBSERVED_FILE_BYTES else {}
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    sample = found.get("sample")
    at = sample.get("time") if isinstance(sample, dict) else None
    if not isinstance(at, int | float) or not abs(time.time() - at) <= OLDEST_SAMPLE_SECONDS:
        found.pop("sample", None)
    return {"observed": found} if found else {}
