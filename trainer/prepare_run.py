"""A preparation as a run of its own, `runs/prepare-…/`: its attempts, its heartbeat, and how it ended.

It is for machines that nobody watches: on AWS a guard stops a run without a heartbeat, and one that has ended. Nothing
here knows of images, and the shards are stored without it.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from trainer.contract import CRASH, HEARTBEAT_SECONDS, Exit, Phase, UserError, attempt_key, run_key
from trainer.data.making.revision.hub_faults import UnreachableError
from trainer.process import spot
from trainer.store import ConflictError, NotFoundError, ObjectStore, StoreError, may_pass, naming_the_fix
from trainer.store.background import in_background
from trainer.store.retry import Retry
from trainer.text import say, show_name
from trainer.upload.owner import claim_attempt
from trainer.values import as_text, as_whole, parse_object

LEAVE_SECONDS = 10  # how long the last record is tried after a SIGTERM


class PrepareRun:
    """One attempt, from its beginning to its end."""

    def __init__(self, store: ObjectStore, run_id: str) -> None:
        self.store, self.run_id = store, run_id
        self.attempt = claim_attempt(store, run_id)
        self.record: dict[str, Any] = {"attempt": self.attempt, "started": time.time()}
        self.record["machine"] = spot.describe_machine(spot.documents(os.environ))
        self.put(attempt_key(run_id, self.attempt), self.record)
        self.phase, self.progress, self.counting = Phase.STARTING, 0, threading.Lock()
        self.retry = Retry(say)
        self.ended = threading.Event()
        self.beating = threading.Thread(target=self.beat_forever, daemon=True, name="heartbeat")
        self.beating.start()

    def put(self, key: str, body: dict[str, Any]) -> None:
        self.store.put(key, json.dumps(body, indent=1).encode())

    def count(self, phase: str, amount: int) -> None:
        """Count more bytes or images of a phase that are done. Any thread may call this."""
        with self.counting:
            if phase != self.phase:
                self.phase, self.progress = phase, 0
            self.progress += amount

    def beat(self) -> None:
        with self.counting:
            status = {"phase": self.phase, "step": 0, "progress": self.progress}
        body = status | {"time": time.time(), "attempt": self.attempt, "owner": platform.node()}
        try:
            self.put(run_key(self.run_id, "heartbeat.json"), body)
        except Exception as error:  # noqa: BLE001  # whatever it is: the guard stops a run without a heartbeat
            self.retry.complain(f"no heartbeat could be stored, and the preparation goes on: {error}")

    def beat_forever(self) -> None:
        while not self.ended.is_set():
            self.beat()
            self.ended.wait(HEARTBEAT_SECONDS)

    def end(self, code: int, message: str, **facts: Any) -> None:
        """Record how it ended. `done.json` or `failed.json` is written last. Raises StoreError."""
        self.ended.set()
        self.beating.join()
        body = self.record | {"exit": int(code), "message": message, "ended": time.time()} | facts
        self.put(attempt_key(self.run_id, self.attempt), body)
        if code == Exit.FINISHED:
            with contextlib.suppress(ConflictError):  # two preparations at the same time have made the same
                self.store.create(run_key(self.run_id, "done.json"), json.dumps(body, indent=1).encode())
        if code == Exit.USER:
            self.put(run_key(self.run_id, "failed.json"), body)

    def interrupt(self) -> None:
        """Record that it was stopped, if the store takes that soon. Another thread does it, since the thread that got
        the signal may hold a lock that is needed."""
        if not self.ended.is_set():
            word = in_background(partial(self.end, Exit.INTERRUPTED, "stopped"))
            with contextlib.suppress(TimeoutError, StoreError):
                word.result(timeout=LEAVE_SECONDS)


def exit_code(error: UserError) -> int:
    """The exit code of an error. One that may mend itself is a crash, and a crash is tried again."""
    return CRASH if isinstance(error, UnreachableError) or may_pass(error) else Exit.USER


def is_done(store: ObjectStore, run_id: str) -> bool:
    """Whether an earlier attempt has finished. If so, a message says that."""
    try:
        done = parse_object(store.get(run_key(run_id, "done.json")))
        images, place = as_whole("images", done.get("images", 0)), as_text("dataset", done.get("dataset", ""))
    except NotFoundError:
        return False
    except ValueError as error:
        say(f"{run_id} is finished already, but its done.json is not what a preparation writes ({error})")
        return True
    say(f"{run_id} is finished already: {images:,} images in {show_name(place or store.uri)}")
    return True


def record(store: ObjectStore, run_id: str, work: Callable[[PrepareRun], dict[str, Any]]) -> None:
    """Do the work as the next attempt of a run, unless the run is finished. Its result goes into `done.json`."""
    with naming_the_fix(f"the store {store.uri}"):
        if is_done(store, run_id):
            return
        run = PrepareRun(store, run_id)
    try:
        facts = work(run)
    except Exception as error:
        code = exit_code(error) if isinstance(error, UserError) else CRASH
        with contextlib.suppress(StoreError):  # the store may be the reason; the exit code is still right
            run.end(code, str(error) or type(error).__name__)
        raise
    run.end(Exit.FINISHED, "prepared", **facts)
