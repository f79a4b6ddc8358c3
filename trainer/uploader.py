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
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainer.channel import Channel, DisconnectedError, Message, attempt_dir, listen, read_json
from trainer.contract import Exit, LostRunError, RunEnv, UserError, checkpoint_key, run_key
from trainer.head import RENEWALS_PER_LEASE, HeadOwner, MachineLock, claim_attempt, data_key, put_checkpoint
from trainer.keep import keep_checkpoint, keep_file, resend
from trainer.patience import PAUSE_SECONDS, Patience, say
from trainer.snapshot import Snapshot
from trainer.store import ConflictError, NotFoundError, ObjectStore, StoreError, may_pass, open_store

HEARTBEAT_SECONDS = 30
DRAIN_SECONDS = 90  # what is left when the supervisor dies is tried for so long
PUTS_AT_ONCE = 4  # segments of metrics
PROBE_SECONDS = 60  # a store whose servers fail at the start is tried for so long


class Uploader:
    """One attempt's uploads: metrics as they come, and the rest in order by one thread, so that "marker last" holds."""

    def __init__(self, env: RunEnv, store: ObjectStore, head: HeadOwner):
        self.env, self.store, self.head = replace(env, attempt=str(head.attempt)), store, head
        self.jobs: queue.Queue[Callable[[], None]] = queue.Queue()
        self.pool = ThreadPoolExecutor(PUTS_AT_ONCE)
        self.puts: set[Future[None]] = set()  # of metrics; replaced, never changed, once somebody may look at it
        self.patience = Patience()
        self.failed = False  # something did not reach the store by the deadline
        self.kept = ""  # the folder where that is
        self.channels: list[Channel] = []
        self.snapshots: dict[int, Snapshot] = {}  # by inode: mapped once
        self.readers: list[threading.Thread] = []

    def put_soon(self, request: Message, fd: int | None) -> None:
        """Several at a time, beside the checkpoints, so that a slow store does not hold those up."""
        unfinished = {put for put in self.puts if not put.done() or put.exception()}
        self.puts = unfinished | {self.pool.submit(self.put, request, fd)}

    def in_order(self, work: Callable[[], None]) -> None:
        """Queue what has to come after all puts until now."""
        before = self.puts

        def job() -> None:
            for put in before:
                put.result()
            work()

        self.jobs.put(job)

    def put(self, request: Message, fd: int | None = None) -> None:
        """`{"op": "put" | "create", "key", "body" | "path"}` or a file: JSON or a file; "create" keeps what exists."""
        key = request["key"]
        if fd is not None:
            with os.fdopen(fd, "rb") as file:
                body = os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0)
        elif "path" in request:
            try:
                body = Path(request["path"]).read_bytes()
            except OSError as error:
                self.patience.complain(f"{key} is not stored: {error}")
                return
        else:
            body = json.dumps(request["body"], indent=1).encode()

        def work() -> None:
            if request["op"] == "create":
                with contextlib.suppress(ConflictError):  # created once; it stands
                    self.store.create(key, body)
            else:
                self.store.put(key, body)

        if not self.patience.until_done(key, work):
            self.keep(lambda: keep_file(self.env, key, body))

    def commit(self, request: Message, fd: int, before: Collection[Future[None]], channel: Channel) -> None:
        """Object, then manifest, then head; the trainer may not write to the snapshot meanwhile.

        Nothing begins before the metrics that were sent `before` are stored.
        """
        inode = os.fstat(fd).st_ino
        if inode in self.snapshots:
            os.close(fd)
        else:
            self.snapshots[inode] = Snapshot(fd)
        snapshot = self.snapshots[inode]
        snapshot.lock(wait=True)
        try:
            note = snapshot.note
            if note["seq"] == request["seq"]:  # else the trainer has put a newer one into this memory
                for put in before:
                    put.result()
                self.commit_snapshot(note, snapshot.body, channel)
        finally:
            snapshot.unlock()

    def commit_snapshot(self, note: Message, body: memoryview, channel: Channel) -> None:
        superseded: set[str] = set()
        name = f"the checkpoint of step {note['step']}"

        def work() -> None:
            nonlocal superseded, name
            name = put_checkpoint(self.store, self.env.run_id, self.head.attempt, note, body)
            superseded = self.head.commit(name, is_best=note["is_best"])

        answer: Message = {"seq": note["seq"], "step": note["step"]}
        try:
            if not self.failed and self.patience.until_done(name, work):  # never without the metrics before it
                answer["committed"] = name
            else:
                self.keep(lambda: keep_checkpoint(self.env, note, body))
        except LostRunError as error:
            superseded = {name}  # of which the new owner knows nothing
            self.tell_lost(error)
        for manifest in sorted(superseded):
            self.jobs.put(lambda manifest=manifest: self.retire(manifest))  # type: ignore[misc]
        with contextlib.suppress(OSError):  # the trainer is gone
            channel.send(answer)

    def keep(self, save: Callable[[], Path]) -> None:
        """What the store did not take by the deadline stays on this machine; the next start here stores it."""
        self.failed = True
        try:
            self.kept = str(save())
        except OSError as error:
            say(f"and it cannot be kept on this machine either: {error}")

    def retire(self, manifest: str) -> None:
        """Mark a superseded manifest and its object; a directory store removes them. A failure costs only space."""

        def work() -> None:
            self.store.retire(data_key(manifest))
            self.store.retire(manifest)

        if not self.patience.has_an_end:
            try:
                work()
            except StoreError as error:
                self.patience.complain(f"a superseded checkpoint could not be given up, trying again: {error}")
                again = threading.Timer(PAUSE_SECONDS, lambda: self.jobs.put(lambda: self.retire(manifest)))
                again.daemon = True
                again.start()
        else:
            with contextlib.suppress(StoreError):
                work()

    def tell_lost(self, error: LostRunError) -> None:
        """The trainer has to end."""
        say(str(error))
        for channel in self.channels:
            with contextlib.suppress(OSError):
                channel.send({"lost": str(error)})

    def claim(self) -> None:
        """Take the run for this attempt, finish what the one before began, and renew the lease from now on."""

        def work() -> None:
            self.head.claim(say, lambda before: resend(self.env, self.store, before, say))
            for prefix in (checkpoint_key(self.env.run_id, ""), run_key(self.env.run_id, "")):
                self.store.abort_uploads(prefix)  # what a killed writer began

        if not self.patience.until_done("the claim to the run", work):
            raise LostRunError("the store did not take this attempt's claim to the run in time")
        for target in (self.renew_forever, lambda: self.patience.until_done("retiring what was left", self.head.sweep)):
            threading.Thread(target=self.unless_lost, args=[target], daemon=True).start()

    def unless_lost(self, work: Callable[[], Any]) -> None:
        try:
            work()
        except LostRunError as error:
            self.tell_lost(error)

    def renew_forever(self) -> None:
        while True:
            time.sleep(self.head.lease_seconds / RENEWALS_PER_LEASE)
            try:
                self.head.renew()
            except StoreError as error:
                self.patience.complain(f"the lease could not be renewed, trying again: {error}")

    def read_trainer(self, channel: Channel) -> None:
        """Queue what one trainer process sends, until it closes or dies."""
        try:
            if not self.head.is_mine:
                self.claim()
        except LostRunError as error:
            channel.send({"lost": str(error)})
            return
        self.channels.append(channel)
        channel.send({"hello": self.head.attempt})
        while True:
            try:
                request, fd = channel.receive()
            except DisconnectedError:
                return
            if request["op"] == "checkpoint" and fd is not None:
                before = self.puts
                self.jobs.put(
                    lambda request=request, fd=fd, before=before: self.commit(request, fd, before, channel)  # type: ignore[misc]
                )
            else:
                self.put_soon(request, fd)

    def read_supervisor(self) -> None:
        """Queue what the supervisor asks on standard input; its end, or its death, is the end of this process."""
        for line in sys.stdin:
            request = json.loads(line)
            if request["op"] == "flush":
                self.drain(request["seconds"])
                self.in_order(lambda: print(json.dumps({"drained": not self.failed, "kept": self.kept}), flush=True))
            else:
                self.in_order(lambda request=request: self.put(request))  # type: ignore[misc]
        self.drain(DRAIN_SECONDS)
        self.in_order(self.stop)

    def drain(self, seconds: float) -> None:
        """The trainer has ended: read what it still sent, and bound the retries."""
        self.patience.end_in(seconds)
        for reader in self.readers:
            reader.join(timeout=5)

    def stop(self) -> None:
        self.beat()
        if self.head.is_mine:
            with contextlib.suppress(StoreError, LostRunError):
                self.head.release()
        raise SystemExit(1 if self.failed else 0)

    def beat(self) -> None:
        """Copy the trainer's small status file to the store's heartbeat, unless another attempt may be alive."""
        status = read_json(attempt_dir(self.env) / "status.json") or {}
        body = status | {"time": time.time(), "attempt": self.head.attempt, "owner": platform.node()}
        try:
            if not self.head.look():
                self.store.put(run_key(self.env.run_id, "heartbeat.json"), json.dumps(body).encode())
        except StoreError as error:
            self.patience.complain(f"no heartbeat could be stored: {error}")

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
        print(json.dumps({"state": "ready", "attempt": self.head.attempt, "socket": path}), flush=True)
        try:
            while True:
                self.jobs.get()()
        finally:
            Path(path).unlink(missing_ok=True)
            Path(path).parent.rmdir()


def start() -> Uploader | None:
    """Probe the store and take an attempt; None when the run is finished already. Raises UserError, StoreError."""
    env = RunEnv.from_environ(os.environ)
    store = open_store(env.store)
    for key in (run_key(env.run_id, "probe"), checkpoint_key(env.run_id, "probe")):
        store.probe(key)
    try:
        store.head(run_key(env.run_id, "done.json"))
    except NotFoundError:
        lock = MachineLock(Path(env.scratch_dir).absolute() / "runs" / env.run_id / "uploader.lock")
        attempt = claim_attempt(store, env.run_id)
        return Uploader(env, store, HeadOwner(store, env.run_id, attempt, float(env.lease_seconds), lock))
    return None


def main() -> int:
    os.nice(10)  # never ahead of the trainer
    deadline = time.monotonic() + PROBE_SECONDS
    while True:
        try:
            uploader = start()
        except (UserError, StoreError) as error:
            left = deadline - time.monotonic()
            if not may_pass(error) or left <= 0:
                print(f"error: {error}", file=sys.stderr)
                return Exit.USER
            say(f"the store fails, trying for {left:.0f} s: {error}")
            time.sleep(min(5.0, left))
        else:
            break
    if uploader is None:
        print(json.dumps({"state": "finished"}), flush=True)
        return 0
    uploader.run()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
