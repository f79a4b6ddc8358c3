"""The process between a run and its store: attempts, heartbeat, metrics, and the commit of checkpoints.

It is started before the trainer and outlives it, so a killed trainer's last checkpoint still arrives, and nothing of
an upload ever holds the trainer's interpreter. What to save and when is the trainer's business (`checkpoint.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import queue
import sys
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from trainer.channel import Channel, Message, attempt_dir, listen, read_json
from trainer.contract import (
    HEAD_FILE,
    Exit,
    Head,
    LostRunError,
    RunEnv,
    UserError,
    attempt_key,
    checkpoint_key,
    manifest_key,
    run_key,
    snapshot_key,
)
from trainer.store import ConflictError, NotFoundError, ObjectStore, StoreError, open_store

HEARTBEAT_SECONDS = 30
COMPLAIN_SECONDS = 60  # a store that fails is mentioned no more often
DRAIN_SECONDS = 90  # what is left when the supervisor closes, or dies, is tried for so long
CHUNK_BYTES = 1 << 24


def say(message: str) -> None:
    print(f"uploader: {message}", file=sys.stderr, flush=True)


def claim_attempt(store: ObjectStore, run_id: str) -> int:
    """The next free attempt number, taken by creating its key."""
    prefix = run_key(run_id, "attempts/")
    taken = [int(Path(info.key).stem) for info in store.list(prefix)]
    attempt = max(taken, default=0) + 1
    while True:
        body = {"attempt": attempt, "started": time.time(), "host": platform.node()}
        try:
            store.create(attempt_key(run_id, attempt), json.dumps(body).encode())
        except ConflictError:
            attempt += 1
        else:
            return attempt


class HeadWriter:
    """The head of one run, moved by compare-and-swap; raises LostRunError once a later attempt owns it."""

    def __init__(self, store: ObjectStore, run_id: str, attempt: int):
        self.store, self.key, self.attempt = store, checkpoint_key(run_id, HEAD_FILE), attempt
        self.head = Head(attempt=attempt)
        self.move(lambda head: head)

    def move(self, change: Callable[[Head], Head]) -> Head:
        """Write `change(head)` under this attempt's name; the head before the move."""
        while True:
            try:
                body, etag = self.store.get_with_etag(self.key)
            except NotFoundError:
                before, etag = None, ""
            else:
                before = Head.from_json(body)
            if before is not None and before.attempt > self.attempt:
                raise LostRunError(f"attempt {before.attempt} has taken the run over from attempt {self.attempt}")
            after = change(before or Head(attempt=self.attempt))
            self.head = replace(after, attempt=self.attempt)
            try:
                if before is None:
                    self.store.create(self.key, self.head.to_json())
                else:
                    self.store.replace(self.key, self.head.to_json(), etag)
            except ConflictError:
                continue  # somebody moved it in between: look again
            return before or Head(attempt=self.attempt)


def checksum(fd: int, size: int) -> int:
    """CRC-32 of the first `size` bytes of a file."""
    crc, position = 0, 0
    while position < size:
        chunk = os.pread(fd, min(CHUNK_BYTES, size - position), position)
        if not chunk:
            raise OSError(f"the snapshot ends at byte {position} of {size}")
        crc, position = zlib.crc32(chunk, crc), position + len(chunk)
    return crc


class Uploader:
    """One attempt's queue of uploads, worked off in order by one thread; order is what makes "marker last" true."""

    def __init__(self, env: RunEnv, store: ObjectStore, attempt: int):
        self.env, self.store, self.attempt = env, store, attempt
        self.jobs: queue.Queue[Callable[[], None]] = queue.Queue()
        self.deadline = float("inf")
        self.lost: list[str] = []  # what did not reach the store by the deadline
        self.complained = float("-inf")
        self.readers: list[threading.Thread] = []
        self.head: HeadWriter | None = None  # from the moment that a trainer connects

    def until_done(self, what: str, work: Callable[[], None]) -> bool:
        """Do it, again and again while the store fails, with growing pauses, until the deadline."""
        pause = 1.0
        while True:
            try:
                work()
            except StoreError as error:
                now = time.monotonic()
                if now >= self.deadline:
                    say(f"gave up on {what}: {error}")
                    self.lost.append(what)
                    return False
                self.complain(f"the store fails, training goes on, trying again: {error}")
                time.sleep(min(pause, max(0.0, self.deadline - now)))
                pause = min(pause * 2, 30.0)
            else:
                return True

    def put(self, request: Message) -> None:
        """`{"op": "put" | "create", "key", "body" | "path"}`: JSON or a local file; "create" keeps what exists."""
        key = request["key"]

        def work() -> None:
            if request["op"] == "create":
                try:
                    self.store.create(key, json.dumps(request["body"], indent=1).encode())
                except ConflictError:
                    return  # created once; it stands
            elif "path" in request:
                with Path(request["path"]).open("rb") as file:
                    self.store.put(key, file)
            else:
                self.store.put(key, json.dumps(request["body"], indent=1).encode())

        self.until_done(key, work)

    def commit(self, request: Message, fd: int, channel: Channel) -> None:
        """Object, then manifest, then head; then the answer that frees the trainer's buffer."""
        started, step = time.monotonic(), request["step"]
        run_id, size = self.env.run_id, request["bytes"]
        data, name = snapshot_key(run_id, step, self.attempt), manifest_key(run_id, step, self.attempt)
        before, head = Head(attempt=self.attempt), self.head
        if head is None:
            raise RuntimeError("a checkpoint came before the trainer was greeted")

        def work() -> None:
            nonlocal before
            with os.fdopen(os.dup(fd), "rb") as file:
                file.seek(0)
                self.store.put(data, file)
            manifest = request["manifest"] | {"object": {"key": data, "bytes": size, "crc32": checksum(fd, size)}}
            self.store.put(name, json.dumps(manifest, indent=1).encode())
            before = head.move(lambda found: found.advance(name, is_best=request["is_best"]))

        answer: Message = {"buffer": request["buffer"], "step": step}
        try:
            if self.until_done(name, work):
                answer |= {"committed": name, "seconds": time.monotonic() - started}
        except LostRunError as error:
            say(str(error))
            answer |= {"lost": str(error)}
        finally:
            os.close(fd)
        with contextlib.suppress(OSError):  # the trainer is gone: nobody waits for the buffer
            channel.send(answer)
        if "committed" in answer:
            for manifest in before.keys() - head.head.keys():
                self.retire(manifest)

    def retire(self, manifest: str) -> None:
        """Mark a superseded manifest and its object; a directory store removes them. A failure costs only space."""
        try:
            self.store.retire(manifest.replace("/manifest/", "/data/").removesuffix(".json") + ".safetensors")
            self.store.retire(manifest)
        except StoreError as error:
            self.complain(f"a superseded checkpoint could not be given up: {error}")

    def claim(self) -> None:
        """Take the run's head for this attempt; LostRunError when a later one has it."""

        def work() -> None:
            self.head = HeadWriter(self.store, self.env.run_id, self.attempt)

        if not self.until_done("HEAD.json", work):
            raise LostRunError("the store did not take this attempt's claim to the run in time")

    def read_trainer(self, channel: Channel) -> None:
        """Queue what one trainer process sends, until it closes or dies."""
        try:
            self.claim()
        except LostRunError as error:
            channel.send({"lost": str(error)})
            return
        channel.send({"hello": self.attempt})
        while received := channel.receive():
            request, fd = received
            if request["op"] == "checkpoint" and fd is not None:
                self.jobs.put(lambda request=request, fd=fd: self.commit(request, fd, channel))  # type: ignore[misc]
            else:
                self.jobs.put(lambda request=request: self.put(request))  # type: ignore[misc]

    def read_supervisor(self) -> None:
        """Queue what the supervisor asks on standard input; its end, or its death, is the end of this process."""
        for line in sys.stdin:
            request = json.loads(line)
            if request["op"] == "flush":
                self.drain(request["seconds"])
                self.jobs.put(lambda: print(json.dumps({"drained": not self.lost}), flush=True))
            else:
                self.jobs.put(lambda request=request: self.put(request))  # type: ignore[misc]
        self.drain(DRAIN_SECONDS)
        self.jobs.put(self.stop)

    def drain(self, seconds: float) -> None:
        """The trainer has ended: read what it still sent, and bound the retries."""
        for reader in self.readers:
            reader.join(timeout=5)
        self.deadline = min(self.deadline, time.monotonic() + seconds)

    def stop(self) -> None:
        self.beat()
        raise SystemExit(1 if self.lost else 0)

    def beat(self) -> None:
        """Copy the trainer's small status file to the store's heartbeat."""
        status = read_json(attempt_dir(replace(self.env, attempt=str(self.attempt))) / "status.json") or {}
        body = status | {"time": time.time(), "attempt": self.attempt, "owner": platform.node()}
        try:
            self.store.put(run_key(self.env.run_id, "heartbeat.json"), json.dumps(body).encode())
        except StoreError as error:
            self.complain(f"no heartbeat could be stored: {error}")

    def complain(self, message: str) -> None:
        """Say it, unless something was said less than a minute ago."""
        if time.monotonic() >= self.complained + COMPLAIN_SECONDS:
            say(message)
            self.complained = time.monotonic()

    def beat_forever(self) -> None:
        while True:
            self.beat()
            time.sleep(HEARTBEAT_SECONDS)

    def run(self) -> None:
        server, path = listen()

        def accept() -> None:
            while True:
                channel = Channel(server.accept()[0])
                reader = threading.Thread(target=self.read_trainer, args=[channel], daemon=True)
                self.readers.append(reader)
                reader.start()

        for target in (accept, self.read_supervisor, self.beat_forever):
            threading.Thread(target=target, daemon=True).start()
        print(json.dumps({"state": "ready", "attempt": self.attempt, "socket": path}), flush=True)
        try:
            while True:
                self.jobs.get()()
        finally:
            Path(path).unlink(missing_ok=True)
            Path(path).parent.rmdir()


def start() -> Uploader | None:
    """Probe the store and claim an attempt; None when the run is finished already. Raises UserError, StoreError."""
    env = RunEnv.from_environ(os.environ)
    store = open_store(env.store)
    store.probe(run_key(env.run_id, "probe"))
    try:
        store.head(run_key(env.run_id, "done.json"))
    except NotFoundError:
        return Uploader(env, store, claim_attempt(store, env.run_id))
    return None


def main() -> int:
    os.nice(10)  # never ahead of the trainer
    try:
        uploader = start()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return Exit.USER
    except StoreError as error:
        say(f"the store does not answer: {error}")
        return 1
    if uploader is None:
        print(json.dumps({"state": "finished"}), flush=True)
        return 0
    uploader.run()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
