"""A machine among several of one run: whether it leads or joins, and the record of it that the others' tools read.

The run's lease decides: whoever owns it leads, and names there the place where the machines meet.
"""

from __future__ import annotations

import json
import os
import random
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import Any

from trainer.contract import HEARTBEAT_SECONDS, Lease, LostRunError, Phase, RunEnv, UserError, attempt_key, run_key
from trainer.process.channel import attempt_dir, read_json
from trainer.process.nodes import (
    CURRENT,
    HAS_LED,
    LAST_ATTEMPT,
    LEASE_SEEN,
    LEFT,
    MEETING,
    OVER,
    SEEN_ATTEMPT,
    has_others,
)
from trainer.store import NotFoundError, ObjectStore, StoreError, may_pass
from trainer.store.retry import Retry
from trainer.upload.hangs import ship_hangs
from trainer.upload.owner import RENEWALS_PER_LEASE, MachineLock, Ownership
from trainer.upload.queue import say_as_uploader
from trainer.values import parse_object

HEADLESS_SECONDS = 600  # until a machine gives up that the others do not hear
MISTAKE_SECONDS = 20  # after which a meeting place that answers for a run that is not in this store counts as a mistake
SCOUT_SECONDS = 0.5
OVER_SECONDS = 60  # after the end of an attempt here, in which its meeting place may still answer
TELL_SECONDS = 30
UNLED_SECONDS = 30  # without a head, after which a machine that only gets its data leads: the guard waits for 180

WITH_DATA = (Phase.COMPILING, Phase.TRAINING, Phase.EVALUATING, Phase.SAVING)  # phases of a machine that has its data


def answers(place: str) -> bool:
    """Whether somebody listens at host:port."""
    host, _, port = place.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
    except (OSError, ValueError):
        return False
    return True


def is_ending(store: ObjectStore, run_id: str, attempt: int) -> bool:
    """Whether the head does the last save of this attempt, or has done it, as its heartbeat tells. Raises StoreError.

    torchrun would end that save 30 s after a machine has joined.
    """
    try:
        beat = parse_object(store.get(run_key(run_id, "heartbeat.json")))
    except (NotFoundError, ValueError):
        return False
    return beat.get("attempt") == attempt and beat.get("phase") == Phase.SAVING


class Scout:
    """Looks who leads the run."""

    def __init__(self, env: RunEnv, store: ObjectStore):
        self.env, self.store = env, store
        self.may_lead, self.has_led = bool(os.environ.get(MEETING)), os.environ.get(HAS_LED) == "1"
        self.ended, self.seen = (int(os.environ.get(name) or 0) for name in (LAST_ATTEMPT, SEEN_ATTEMPT))
        self.lock = MachineLock.of(env)
        self.view = Ownership(store, env.run_id, 0, float(env.lease_seconds), self.lock)
        if seen := json.loads(os.environ.get(LEASE_SEEN) or '""'):
            self.view.has_been_watched(*seen)
        self.began = self.told = self.answered = time.monotonic()
        self.retry = Retry(say_as_uploader)
        # The one that led goes first, and few others come at the same moment: an attempt's number is never given back.
        self.modesty = 0.0 if self.has_led else random.uniform(1, 4)

    def is_finished(self) -> bool:
        try:
            self.store.info(run_key(self.env.run_id, "done.json"))
        except NotFoundError:
            return False
        return True

    def failure(self) -> str | None:
        """Why the run failed in the last attempt that this machine saw, or after it. A fresh start tries again."""
        if not self.seen:
            return None
        try:
            failed = json.loads(self.store.get(run_key(self.env.run_id, "failed.json")))
            is_later = int(failed["attempt"]) >= self.seen
        except (NotFoundError, ValueError, KeyError, TypeError):  # or nobody of ours has written it
            return None
        return str(failed.get("message", "the run has failed")) if is_later else None

    def head(self) -> Lease | None:
        """The lease of the machine that leads, once it answers; None where this one is to lead.

        Raises LostRunError after HEADLESS_SECONDS, UserError where the run has failed, and StoreError where the store
        fails for as long.
        """
        while True:
            try:
                return self._find()
            except StoreError as error:
                left = self.began + HEADLESS_SECONDS - time.monotonic()
                if left <= 0 or not may_pass(error):
                    raise
                self.retry.complain(f"the store fails, trying for {left:.0f} s: {error}")
            time.sleep(SCOUT_SECONDS)
            now = time.monotonic()  # until which the head could not renew its lease either
            self.view.seen_at, self.answered = self.view.seen_at + now - self.answered, now

    def _find(self) -> Lease | None:
        """`head`, while the store works."""
        free_since = 0.0
        while True:
            is_held, lease, now = self.view.is_held_by_another(), self.view.lease, time.monotonic()
            self.answered = now
            if is_held and lease is not None:
                free_since = 0.0
                if ending := is_ending(self.store, self.env.run_id, lease.attempt):
                    self.began = now  # the head is at work, however long that takes: else its lease would be free
                is_over = ending or (lease.attempt == self.ended and now < self.began + OVER_SECONDS)
                if lease.rendezvous and not is_over and answers(lease.rendezvous):
                    return lease
            elif (failure := self.failure()) is not None:
                raise UserError(failure)
            elif self.may_lead:
                free_since = free_since or now
                if now >= free_since + self.modesty:
                    self.lock.close()  # the attempt takes it again, under its own name
                    return None
            elif self.is_finished():
                return None
            self._wait(lease if is_held else None, now)

    def _wait(self, lease: Lease | None, now: float) -> None:
        waited = now - self.began
        if lease is None and waited > MISTAKE_SECONDS and answers(self.env.rendezvous):
            raise LostRunError(
                f"{self.env.rendezvous} answers, but in {self.store.uri} nobody leads the run {self.env.run_id!r}: all "
                "machines need one store that all of them see, s3://… or a shared folder (STORE=), and one RUN="
            )
        place = self.env.rendezvous or (lease.rendezvous if lease is not None else "")
        if waited > HEADLESS_SECONDS:
            raise LostRunError(
                f"{place or 'the machine that leads'} has not answered for {HEADLESS_SECONDS} s: is that machine up, "
                "does it train this run, and does a firewall let TCP through to that port, and to all others above "
                "1023, from each machine to each?"
            )
        if now >= self.told + TELL_SECONDS:
            self.told = now
            say_as_uploader(f"waiting for the machine that leads the run, at {place or 'a place that it will name'}")
        time.sleep(SCOUT_SECONDS)


class MachineRecord:
    """`nodes/<node>.json` of this machine."""

    def __init__(self, env: RunEnv, store: ObjectStore, role: str):
        self.env, self.store, self.role = env, store, role
        self.message, self.machine = "", dict[str, Any]()
        self.told: list[Any] = []  # phase and message of the last record

    def status(self) -> dict[str, Any]:
        """What the trainer tells of itself; {} where its file cannot be read, since the record counts without it."""
        try:
            return read_json(attempt_dir(self.env) / "status.json") or {}
        except (OSError, ValueError):  # a full disk has half of it
            return {}

    def has_news(self) -> bool:
        """Whether it is out of date: in its phase, or in what the supervisor said last. False for a single machine."""
        return has_others(self.env) and self.told != [self.status().get("phase"), self.message]

    def note(self, request: dict[str, Any]) -> None:
        """What the supervisor tells of this machine."""
        self.message, self.machine = request.get("message", self.message), request.get("machine", self.machine)

    def write(self, *, ended: bool = False) -> None:
        """Store it, where the run has several machines. Raises StoreError."""
        if not has_others(self.env):
            return
        status = self.status()
        self.told = [status.get("phase"), self.message]
        here = {name: status.get(name) for name in ("phase", "step")}
        body = {
            "node": self.env.node, "address": self.env.address, "role": self.role, "attempt": int(self.env.attempt),
            "time": time.time(), **here, "processes": int(os.environ.get("PET_NPROC_PER_NODE") or 1),
            "machine": self.machine, "message": self.message,
        }  # fmt: skip
        if ended:
            body["ended"] = time.time()
        self.store.put(run_key(self.env.run_id, f"nodes/{self.env.node}.json"), json.dumps(body).encode())


class Companion:
    """The uploader of a machine that joins: it stores the record of its machine, and nothing of the run."""

    def __init__(self, env: RunEnv, store: ObjectStore, lease: Lease):
        self.env, self.store, self.lease = env, store, lease
        self.view = Ownership(store, env.run_id, 0, float(env.lease_seconds), MachineLock.of(env))
        self.record = MachineRecord(env, store, "member")
        self.complained = False
        self.is_ending = False  # the attempt that it is to join
        self.looked_at = self.led_at = time.monotonic()

    def beat(self, *, ended: bool = False) -> None:
        try:
            self.record.write(ended=ended)
        except Exception as error:  # noqa: BLE001  # whatever it is: the thread goes on, and looks after the lease
            if not self.complained:
                say_as_uploader(f"no record of this machine could be stored: {error}")
            self.complained = True

    def beat_forever(self) -> None:
        """Store the record, and watch the lease in between: so the head's end is known when this attempt ends."""
        while True:
            self.beat()
            until = time.monotonic() + HEARTBEAT_SECONDS
            while time.monotonic() < until and not self.record.has_news():
                time.sleep(float(self.env.lease_seconds) / RENEWALS_PER_LEASE)
                self.look()

    def head_has_data(self) -> bool:
        """Whether the others would have to wait for this machine's data: the head has its own already.

        So it is where it has trained, in this attempt or before. Where the store does not tell, they meet at once.
        """
        begun = self._read(attempt_key(self.env.run_id, self.lease.attempt))
        beat = self._read(run_key(self.env.run_id, "heartbeat.json"))
        is_at_work = beat.get("attempt") == self.lease.attempt and beat.get("phase") in WITH_DATA
        return begun.get("has_data") is True or is_at_work

    def _read(self, key: str) -> dict[str, Any]:
        try:
            return parse_object(self.store.get(key))
        except (StoreError, ValueError):
            return {}

    def look(self) -> None:
        """Look after the lease."""
        with suppress(Exception):  # whatever it is: `looked_at` tells it
            self.view.look()
            self.looked_at = time.monotonic()
            self.is_ending = is_ending(self.store, self.env.run_id, self.lease.attempt)

    def standing(self) -> str:
        """How it stands with the attempt that this machine is to join: CURRENT, OVER or, after UNLED_SECONDS, LEFT.

        While the store does not answer, nobody is known to have left.
        """
        lease, now, seconds = self.view.lease, time.monotonic(), float(self.env.lease_seconds)
        is_led = lease is not None and lease.owner and now < self.view.seen_at + seconds
        if is_led or now >= self.looked_at + seconds:
            self.led_at = now
        if is_led and lease is not None and (lease.attempt, lease.since) == (self.lease.attempt, self.lease.since):
            return OVER if self.is_ending else CURRENT
        return LEFT if now >= self.led_at + UNLED_SECONDS else OVER

    def run(self) -> None:
        """Until the supervisor closes standard input."""
        lease = self.lease
        ready = {"state": "member", "attempt": lease.attempt, "rendezvous": lease.rendezvous, "since": lease.since}
        ready |= {"newest": lease.newest, "head_has_data": self.head_has_data(), "socket": "none"}
        print(json.dumps(ready), flush=True)
        threading.Thread(target=self.beat_forever, daemon=True).start()
        for line in sys.stdin:
            request = json.loads(line)
            if request["op"] == "node":
                self.record.note(request)
            elif request["op"] == "look":
                print(json.dumps({"attempt": self.standing()}), flush=True)
        if lack := ship_hangs(self.env, self.store):
            say_as_uploader(lack)
        self.beat(ended=True)
        with suppress(StoreError):
            self.view.look()
        newest = self.view.lease.newest if self.view.lease is not None else lease.newest
        print(json.dumps({"seen": [self.view.etag, self.view.seen_at], "newest": newest}), flush=True)


def end_vain_attempt(store: ObjectStore, key: str, message: str) -> None:
    """An attempt whose machine did not get the run, since another one was quicker: it has ended."""
    with suppress(StoreError, ValueError):
        body = json.loads(store.get(key)) | {"exit": 76, "message": message, "ended": time.time()}
        store.put(key, json.dumps(body).encode())
