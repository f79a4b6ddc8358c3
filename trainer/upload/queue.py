"""What an attempt sends to its store: metrics at once, checkpoints in order, so that their markers come last."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

from trainer.contract import LostRunError, RunEnv
from trainer.manifest import data_key
from trainer.process.channel import Channel, Message
from trainer.process.snapshot import Snapshot
from trainer.store import ConflictError, NotFoundError, ObjectStore, StoreError
from trainer.store.checksum import Checksums
from trainer.store.retry import LONGEST_PAUSE_SECONDS, Retry
from trainer.text import say, show_bytes
from trainer.upload.commit import Commit
from trainer.upload.copies import copy_of, is_copy, missing_copies
from trainer.upload.owner import Ownership
from trainer.upload.unsaved import forget_checkpoint_here, save_checkpoint_here, save_file_here

PUTS_AT_ONCE = 4  # segments of metrics
EVENTS_SECONDS = 10.0  # how long TensorBoard's copies are tried after all else is in the store


def say_as_uploader(message: str) -> None:
    say(f"uploader: {message}")


def done_in_time(retry: Retry, what: str, work: Callable[[], None]) -> bool:
    """Do the work, again and again while the store fails; False when the deadline has passed."""
    try:
        retry.until_done(work, lambda left: f"the store fails, trying {what} again, and training goes on")
    except StoreError as error:
        say_as_uploader(f"gave up on {what}: {error}")
        return False
    return True


def unfinished(puts: set[Future[None]]) -> set[Future[None]]:
    """Those that still run, and those that failed: whoever waits for them hears of it."""
    return {put for put in puts if not put.done() or put.exception()}


class Sender:
    """The main thread does the `jobs` one after the other. Other threads store metrics meanwhile."""

    def __init__(self, env: RunEnv, store: ObjectStore, ownership: Ownership):
        self.env, self.store, self.ownership = env, store, ownership
        self.jobs: queue.Queue[Callable[[], None]] = queue.Queue()
        self.pool = ThreadPoolExecutor(PUTS_AT_ONCE)
        self.puts: set[Future[None]] = set()  # of metrics; a new set replaces it, since other threads read it
        self.copy_pool = ThreadPoolExecutor(1)  # of its own: a segment never waits for a copy
        self.events: set[Future[None]] = set()  # TensorBoard's copies, for which no checkpoint waits; likewise
        self.queueing = threading.Lock()  # the trainer's, the observer's and the main thread queue copies
        self.has_told_events = False  # that a copy could not be made or stored
        self.retry, self.copy_retry = Retry(say_as_uploader), Retry(say_as_uploader)
        self.failed = False  # something did not reach the store by the deadline
        self.saved_here = ""  # the folder with a local copy of it
        self.channels: list[Channel] = []  # of the trainer
        self.snapshots: dict[int, Snapshot] = {}  # by inode: mapped once
        self.stored_seq = 0  # the newest save that is committed
        self.told_size = False  # of what stays for ever
        self.tell_commit: Callable[[Message], None] = lambda note: None  # who else hears of a commit, by its note

    def put_soon(self, request: Message, fd: int | None) -> None:
        """Store in another thread what a request has, so that checkpoints need not wait for a slow store.

        A file behind a descriptor may be a segment, of which TensorBoard gets a copy, or for TensorBoard alone.
        """
        file = None
        if fd is not None:
            file = os.pread(fd, os.fstat(fd).st_size, 0)
            os.close(fd)
        if not is_copy(self.env.run_id, request["key"]):
            self.puts = unfinished(self.puts) | {self.pool.submit(self.put, request, file)}
        if file is not None:
            self.copy_soon(request["key"], file)

    def copy_soon(self, key: str, file: bytes) -> None:
        """Store TensorBoard's copy of a file in another thread, if it has one."""
        self.in_copy_thread(f"of {key}, and maybe of others", partial(self.put_copy, key, file))

    def mend_copies(self) -> None:
        """Make the copies that attempts before this one were killed before making, in another thread."""
        said = "the store fails, trying TensorBoard's copies again, and training goes on"
        work = partial(self.copy_retry.until_done, self.put_missing_copies, lambda left: said)
        self.in_copy_thread("of what attempts before stored", work)

    def in_copy_thread(self, what: str, work: Callable[[], None]) -> None:
        with self.queueing:  # else one of two at once would be forgotten, and nothing would wait for it
            self.events = unfinished(self.events) | {self.copy_pool.submit(self.try_to_copy, what, work)}

    def try_to_copy(self, what: str, work: Callable[[], None]) -> None:
        """The run goes on, and ends well, where it fails."""
        try:
            work()
        except Exception as error:  # noqa: BLE001  # whatever it is: the segments themselves have all metrics
            if not self.has_told_events:
                say_as_uploader(f"TensorBoard has no copy {what}: {error!r}")
            self.has_told_events = True

    def put_copy(self, key: str, file: bytes) -> None:
        """Store TensorBoard's copy of a file, if it has one.

        In an outage of the whole store it is saved on this machine, as the segment is.
        """
        copy = copy_of(self.env.run_id, key, file)
        if copy is None:
            return
        name, events = copy

        def work() -> None:
            if self.failed:
                save_file_here(self.env, name, events)
            else:
                self.store.put(name, events)

        self.copy_retry.until_done(work, lambda left: f"the store fails, trying {name} again, and training goes on")

    def put_missing_copies(self) -> None:
        for key in missing_copies(self.store, self.env.run_id, self.ownership.attempt):
            if time.monotonic() < self.copy_retry.deadline:  # else the next attempt goes on here

                def work(key: str = key) -> None:
                    self.put_copy(key, self.store.get(key))

                self.try_to_copy(f"of {key}, and maybe of others", work)

    def in_order(self, work: Callable[[], None]) -> None:
        """Queue work that has to come after all puts so far. Copies are given up if they alone are left."""
        puts, copies = self.puts, self.events

        def job() -> None:
            for put in puts:
                put.result()
            if self.retry.has_an_end:
                self.copy_retry.end_in(min(EVENTS_SECONDS, self.retry.deadline - time.monotonic()))
            for copy in copies:
                copy.result()
            work()

        self.jobs.put(job)

    def put(self, request: Message, file: bytes | None = None) -> None:
        """Store what a request has: `{"op": "put" | "create", "key", "body"}`, or the bytes of a file.

        "create" leaves an object alone that exists already. It looks first, since on AWS no machine may write the
        run's spec.json, not even on a condition.
        """
        key = request["key"]
        body = json.dumps(request["body"], indent=1).encode() if file is None else file

        def work() -> None:
            if request["op"] == "create":
                with contextlib.suppress(ConflictError):  # it exists since a moment ago
                    if not self.exists(key):
                        self.store.create(key, body)
            else:
                self.store.put(key, body)

        # After one failure, nothing waits for the store any more.
        if self.failed or not done_in_time(self.retry, key, work):
            self.save_here(lambda: save_file_here(self.env, key, body))

    def exists(self, key: str) -> bool:
        try:
            self.store.info(key)
        except NotFoundError:
            return False
        return True

    def snapshot(self, fd: int) -> Snapshot:
        """The snapshot behind a descriptor. Each is mapped once."""
        inode = os.fstat(fd).st_ino
        if inode in self.snapshots:
            os.close(fd)
        else:
            self.snapshots[inode] = Snapshot(fd)
        return self.snapshots[inode]

    def commit(self, seq: int, snapshot: Snapshot, before: Collection[Future[None]], channel: Channel) -> None:
        """Store the object, the manifest and the lease of a snapshot, which the trainer may not change meanwhile.

        The metrics that the trainer sent `before` are stored first.
        """
        snapshot.lock(wait=True)
        try:
            note = snapshot.note
            if note["seq"] == seq:  # else the trainer has replaced it with a newer state
                for put in before:
                    put.result()
                self.commit_snapshot(note, snapshot.body, channel)
        finally:
            snapshot.unlock()

    def commit_snapshot(self, note: Message, body: memoryview, channel: Channel) -> None:
        superseded, name = set[str](), ""
        commit = Commit.of(
            self.env.run_id,
            self.ownership.attempt,
            note["manifest"],
            Checksums.of(body),
            self.ownership.parent_of(note["step"]),
        )
        if not sys.stderr.isatty():  # a terminal is no log
            say_as_uploader(commit.told())

        def work() -> None:
            nonlocal superseded, name
            commit.put(self.store, body)
            name = commit.key
            superseded = self.ownership.commit(name, commit.sha256, is_best=note["is_best"])

        answer: Message = {"seq": note["seq"], "step": note["step"]}
        try:
            if not self.ownership.is_mine:
                self.ownership.refuse_later()  # says who has it, where that is known
                raise LostRunError("the run was taken over")
            # A checkpoint is never stored without the metrics before it.
            if not self.failed and done_in_time(self.retry, f"step {note['step']}", work):
                answer |= {"committed": name, "sha256": commit.sha256}
                self.stored_seq = max(self.stored_seq, note["seq"])
                self.tell_commit(note)
            else:
                self.save_here(lambda: save_checkpoint_here(self.env, note, body))
        except LostRunError as error:
            if self.ownership.lease is not None:
                superseded = {name} - {""} - self.ownership.lease.keys()  # the new owner knows nothing of this manifest
            self.tell_lost(error)
        if superseded and self.store.keeps_all and not self.told_size:
            self.told_size = True
            say_as_uploader(f"{show_bytes(len(body))} of superseded checkpoints stay in the store with each save")
        for manifest in sorted(superseded):
            self.jobs.put(lambda manifest=manifest: self.retire(manifest))  # type: ignore[misc]
        with contextlib.suppress(OSError):  # the trainer is gone
            channel.send(answer)

    def save_here(self, save: Callable[[], Path]) -> None:
        """Save on this machine what the store did not take by the deadline. The next start here stores it."""
        self.failed = True
        try:
            self.saved_here = str(save())
        except OSError as error:
            say_as_uploader(f"and it cannot be kept on this machine either: {error}")

    def retire(self, manifest: str) -> None:
        """Retire a superseded manifest and its object. A failure costs only space."""

        def work() -> None:
            self.store.retire(data_key(manifest))
            self.store.retire(manifest)

        if not self.retry.has_an_end:
            try:
                work()
            except StoreError as error:
                self.retry.complain(f"a superseded checkpoint could not be given up, trying again: {error}")
                again = threading.Timer(LONGEST_PAUSE_SECONDS, lambda: self.jobs.put(lambda: self.retire(manifest)))
                again.daemon = True
                again.start()
        else:
            with contextlib.suppress(StoreError):
                work()

    def tell_lost(self, error: LostRunError) -> None:
        """Tell the trainer that the run is lost, and that it has to end."""
        say_as_uploader(str(error))
        for channel in self.channels:
            with contextlib.suppress(OSError):
                channel.send({"lost": str(error)})

    def save_waiting_here(self) -> None:
        """Copy the newest save that is not committed yet to this machine: there may be no time to do so later.

        Only for a trainer that has ended: nobody writes to the snapshots any more.
        """
        waiting = [snapshot for snapshot in self.snapshots.values() if snapshot.note["seq"] > self.stored_seq]
        if waiting:
            newest = max(waiting, key=lambda snapshot: snapshot.note["seq"])
            with contextlib.suppress(OSError):
                save_checkpoint_here(self.env, newest.note, newest.body)
                self.in_order(self.forget_if_stored)

    def forget_if_stored(self) -> None:
        if not self.failed:
            with contextlib.suppress(OSError):
                forget_checkpoint_here(self.env)
