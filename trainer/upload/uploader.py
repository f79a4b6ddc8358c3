"""The process between a run and its store: attempts, heartbeat, metrics, and the commit of checkpoints.

It starts before the trainer and outlives it, so the last checkpoint of a killed trainer still arrives. No upload ever
holds the trainer's interpreter lock. The trainer decides what to save and when (`checkpoint/saver.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from trainer.contract import (
    CRASH,
    DRAIN_SECONDS,
    HEARTBEAT_SECONDS,
    Exit,
    LostRunError,
    RunEnv,
    UserError,
    attempt_key,
    checkpoint_key,
    run_key,
)
from trainer.process.channel import Channel, DisconnectedError, attempt_dir, listen
from trainer.process.nodes import MEETING, has_others
from trainer.store import NotFoundError, ObjectStore, StoreError, may_pass, open_store
from trainer.store.retry import Retry
from trainer.text import forgive_output, say
from trainer.upload.hangs import ship_hangs
from trainer.upload.machines import Companion, MachineRecord, Scout, end_vain_attempt
from trainer.upload.observed import ObserverPort, read_observed
from trainer.upload.owner import RENEWALS_PER_LEASE, MachineLock, Ownership, claim_attempt, read_first
from trainer.upload.queue import Sender, done_in_time, say_as_uploader
from trainer.upload.unsaved import resend

CLAIM_SECONDS = 300  # how long the claim to a run is tried while the store fails
PROBE_SECONDS = 60  # how long a start is tried while the store fails


class Uploader:
    """The process of one attempt: its connections, and the threads that run all the time."""

    def __init__(self, env: RunEnv, store: ObjectStore, ownership: Ownership):
        self.env, self.store, self.ownership = replace(env, attempt=str(ownership.attempt)), store, ownership
        self.first = read_first(store, env.run_id) if ownership.attempt > 1 else {}
        self.sender = Sender(self.env, store, ownership)
        self.retry = self.sender.retry
        self.readers: list[threading.Thread] = []
        self.observer = ObserverPort(store, ownership, self.sender.copy_soon)
        self.sender.tell_commit = self.observer.tell_commit
        self.record = MachineRecord(self.env, store, "head")

    def claim(self) -> None:
        """Take the run for this attempt, finish what the last attempt began, and renew the lease from now on."""

        def claim() -> None:
            self.ownership.claim(say_as_uploader, lambda before: resend(self.env, self.store, before, say_as_uploader))

        if not done_in_time(Retry(say_as_uploader, CLAIM_SECONDS), "the claim to the run", claim):
            raise StoreError(f"the store has not worked for {CLAIM_SECONDS} s, and the run was not begun")
        for prefix in (checkpoint_key(self.env.run_id, ""), run_key(self.env.run_id, "")):
            try:
                self.store.abort_uploads(prefix)  # what a killed writer began
            except StoreError as error:
                say_as_uploader(f"unfinished uploads stay until the next start, or until they expire: {error}")
        sweep = partial(done_in_time, self.retry, "retiring what was left", self.ownership.sweep)
        for target in (self.renew_forever, sweep):
            threading.Thread(target=self.unless_lost, args=[target], daemon=True).start()
        self.sender.mend_copies()

    def unless_lost(self, work: Callable[[], Any]) -> None:
        try:
            work()
        except LostRunError as error:
            self.sender.tell_lost(error)

    def renew_forever(self) -> None:
        while True:
            time.sleep(self.ownership.lease_seconds / RENEWALS_PER_LEASE)
            try:
                self.ownership.renew()
            except LostRunError:
                raise
            except Exception as error:  # noqa: BLE001  # whatever it is: without renewals the run is lost
                self.retry.complain(f"the lease could not be renewed, trying again: {error}")

    def read_trainer(self, channel: Channel) -> None:
        """Queue what one trainer process sends, until it ends."""
        try:
            if not self.ownership.is_mine:
                self.claim()
        except LostRunError as error:
            channel.send({"lost": str(error)})
            return
        except Exception as error:  # noqa: BLE001  # the trainer must not wait for ever
            say_as_uploader(f"{type(error).__name__}: {error}")
            channel.send({"failed": str(error)})
            return
        self.sender.channels.append(channel)
        channel.send({"hello": self.ownership.attempt})
        while True:
            try:
                request, fd = channel.receive()
            except DisconnectedError:
                return
            if request["op"] == "checkpoint" and fd is not None:
                work = partial(self.sender.commit, request["seq"], self.sender.snapshot(fd), self.sender.puts, channel)
                self.sender.jobs.put(work)
            else:
                self.observer.tell_segment(request, fd)
                self.sender.put_soon(request, fd)

    def read_supervisor(self) -> None:
        """Queue what the supervisor asks on standard input. This process ends when that input does."""
        for line in sys.stdin:
            request = json.loads(line)
            if request["op"] == "flush":
                self.drain(request["seconds"])
                self.sender.in_order(self.answer_flush)
            elif request["op"] == "node":
                self.record.note(request)
            else:
                self.sender.in_order(partial(self.sender.put, request))
        self.drain(DRAIN_SECONDS)  # also where the supervisor has died
        self.sender.in_order(self.stop)

    def answer_flush(self) -> None:
        answer = {"drained": not self.sender.failed, "kept": self.sender.saved_here}
        print(json.dumps(answer | {"newest": self.ownership.written.newest}), flush=True)

    def drain(self, seconds: float) -> None:
        """After the end of the trainer, read what it still sent, and set a deadline for all retries."""
        self.retry.end_in(seconds)
        for reader in self.readers:
            reader.join(timeout=5)
        if not any(reader.is_alive() for reader in self.readers):
            self.sender.save_waiting_here()
        self.observer.drain(seconds)

    def stop(self) -> None:
        if lack := ship_hangs(self.env, self.store):
            say_as_uploader(lack)
        self.beat(ended=True)
        if self.ownership.is_mine:
            with contextlib.suppress(StoreError, LostRunError):
                self.ownership.release()
        raise SystemExit(1 if self.sender.failed else 0)

    def beat(self, *, ended: bool = False) -> None:
        """Store the trainer's status file as the heartbeat, unless another attempt may be alive."""
        status = self.record.status()
        status |= read_observed(attempt_dir(self.env))
        body = status | {"time": time.time(), "attempt": self.ownership.attempt, "owner": platform.node()}
        try:
            if not self.ownership.is_held_by_another():
                self.store.put(run_key(self.env.run_id, "heartbeat.json"), json.dumps(body).encode())
            self.record.write(ended=ended)
        except Exception as error:  # noqa: BLE001  # whatever it is: the guard stops a run without a heartbeat
            self.retry.complain(f"no heartbeat could be stored: {error}")

    def beat_forever(self) -> None:
        while True:
            self.beat()
            until = time.monotonic() + HEARTBEAT_SECONDS
            while time.monotonic() < until and not self.record.has_news():
                time.sleep(min(HEARTBEAT_SECONDS, self.ownership.lease_seconds / RENEWALS_PER_LEASE))

    def run(self) -> None:
        server, path = listen()
        self.observer.open(path)

        def accept() -> None:
            while True:
                channel = Channel(server.accept()[0])
                reader = threading.Thread(target=self.read_trainer, args=[channel], daemon=True)
                self.readers.append(reader)
                reader.start()

        for target in (accept, self.read_supervisor, self.beat_forever):
            threading.Thread(target=target, daemon=True).start()
        ready = {"state": "ready", "attempt": self.ownership.attempt, "socket": path, "first": self.first}
        lease = self.ownership.written
        ready |= {"rendezvous": lease.rendezvous, "newest": lease.newest, "since": lease.since}
        print(json.dumps(ready), flush=True)
        try:
            while True:
                self.sender.jobs.get()()
        finally:
            self.observer.close()
            Path(path).unlink(missing_ok=True)
            Path(path).parent.rmdir()


def start_attempt(retry: Retry) -> Uploader | Companion | None:
    """Probe the store and take an attempt number; None if the run is finished. Raises UserError, StoreError.

    Whoever has waited for a head may try as long as at the start: `retry` has the deadline.

    Of several machines the one that gets the run is an Uploader at once, and the others are members of its attempt.
    Raises LostRunError where they do not find each other.
    """
    env = RunEnv.from_environ(os.environ)
    store = open_store(env.store)
    lacks = store.probe(run_key(env.run_id, "probe"))
    lacks += store.probe(checkpoint_key(env.run_id, "probe"), for_checkpoints=True)
    while True:
        scout = Scout(env, store) if has_others(env) else None
        if scout is not None and (lease := scout.head()) is not None:
            return Companion(replace(env, attempt=str(lease.attempt)), store, lease)
        if scout is not None:
            retry.deadline = time.monotonic() + PROBE_SECONDS
        try:
            store.info(run_key(env.run_id, "done.json"))
        except NotFoundError:
            for lack in lacks:
                say_as_uploader(f"note: {lack}")
            if (uploader := lead(env, store, scout)) is not None:
                return uploader
        else:
            return None


def lead(env: RunEnv, store: ObjectStore, scout: Scout | None) -> Uploader | None:
    """The uploader of a new attempt. Of several machines it has the run; None if another one was quicker."""
    attempt = claim_attempt(store, env.run_id)
    ownership = Ownership(store, env.run_id, attempt, float(env.lease_seconds), MachineLock.of(env))
    uploader = Uploader(env, store, ownership)
    if scout is not None:
        ownership.rendezvous = os.environ[MEETING]
        ownership.has_been_watched(scout.view.etag, scout.view.seen_at)
        try:
            uploader.claim()
        except LostRunError as error:
            end_vain_attempt(store, attempt_key(env.run_id, attempt), str(error))
            ownership.machine.close()
            return None
    return uploader


def main() -> int:
    os.nice(10)  # the trainer goes first
    retry = Retry(say_as_uploader, PROBE_SECONDS)
    try:
        uploader = retry.until_done(
            partial(start_attempt, retry),
            lambda left: f"the store fails, trying for {left:.0f} s",
            is_worth_it=may_pass,
        )
    except (UserError, StoreError) as error:
        say(f"error: {error}")
        return CRASH if may_pass(error) else Exit.USER  # an outage is nobody's mistake: the next start tries again
    except LostRunError as error:
        say(f"error: {error}")
        return Exit.HELD
    if uploader is None:
        print(json.dumps({"state": "finished"}), flush=True)
        return 0
    try:
        uploader.run()
    except UserError as error:
        say(f"error: {error}")
        return Exit.USER
    return 0


if __name__ == "__main__":
    forgive_output()
    raise SystemExit(main())
