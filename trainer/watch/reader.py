"""Reads a run in the background while somebody looks: its facts every few seconds, its report when something changed.

A store that fails is no reason to stop: what was read before stays, and the page says so.
"""

from __future__ import annotations

import threading
import time
import uuid
from dataclasses import dataclass
from typing import Any

from trainer.contract import UserError
from trainer.live.condition import condition_of
from trainer.live.facts import known_runs
from trainer.live.reading import Live, read_live
from trainer.report import build_report
from trainer.store import ObjectStore, StoreError
from trainer.text import show_duration
from trainer.watch.kept import KeptStore
from trainer.watch.shown import shown_document

FOLDER_SECONDS, S3_SECONDS = 2.0, 10.0  # between two looks at a store; a heartbeat comes every 30 s
REPORT_SECONDS = 10.0  # between two reports, at least
STALE_READ_SECONDS = 20.0  # a look that is later than that tells nothing about now
UNWATCHED_SECONDS = 150.0  # a browser asks once a minute for a page that is hidden
MOST_KNOWN = 50  # other runs that are named
NO_STORE = ("ENOENT", "ENOTDIR", "NoSuchBucket")


@dataclass(frozen=True)
class Reading:
    """The last look that worked."""

    live: Live
    others: tuple[str, ...]  # runs of the store, where this one is not there


class RunReader:
    """Two threads: one reads the run, one builds its report. Both rest while nobody asks."""

    def __init__(self, store: ObjectStore, run_id: str, *, seconds: float = 0.0):
        self.store, self.run_id = KeptStore.around(store), run_id
        self.seconds = seconds or (S3_SECONDS if store.uri.startswith("s3://") else FOLDER_SECONDS)
        self.token = uuid.uuid4().hex  # tells a page that stays open that another reader answers it
        self.reading: Reading | None = None
        self.fault, self.fault_since = "", 0.0
        self.report, self.report_number, self.report_fault = b"", 0, ""
        self._asked = threading.Event()
        self._asked_at = time.monotonic()
        self._changed = threading.Event()
        self._stopped = threading.Event()
        self._beat: tuple[Any, float] = (None, time.monotonic())  # the newest heartbeat, and since when it is so

    def start(self) -> None:
        for work in (self._look_forever, self._build_forever):
            threading.Thread(target=work, daemon=True).start()

    def stop(self) -> None:
        """Let the threads end, after what they are reading."""
        for event in (self._stopped, self._asked, self._changed):
            event.set()

    def document(self, now: float) -> dict[str, Any]:
        """What the page shows at `now`, in Unix seconds. It reads nothing, and wakes the threads that do."""
        self._asked_at = time.monotonic()
        self._asked.set()
        told: dict[str, Any] = {"run": self.run_id, "store": self.store.uri, "reader": self.token, "wrong": []}
        told |= {"report": self.report_number, "report_fault": self.report_fault}
        reading, fault = self.reading, self.fault
        if reading is None:
            told |= {"word": "reading", "state": "reading the store", "tone": "open", "figures": [], "progress": None}
        else:
            live = reading.live
            is_old = bool(fault) or now - live.now > self.seconds + STALE_READ_SECONDS
            at = live.now if is_old else now  # nobody knows more than at the last look
            condition = condition_of(live.facts, at, 0.0 if is_old else time.monotonic() - self._beat[1])
            told |= shown_document(live, condition, at)
            told["others"] = list(reading.others)
            if is_old and not fault:  # nobody looked for a while, the machine slept, or the store takes long
                ago = show_duration(now - live.now)
                told["wrong"] = [f"what is shown was read {ago} ago, and is being read again", *told["wrong"]]
        if fault:
            since = show_duration(max(0.0, now - self.fault_since))
            last = f"; what is shown was read {show_duration(max(0.0, now - reading.live.now))} ago" if reading else ""
            told["wrong"] = [f"the store cannot be read for {since}, trying on: {fault}{last}", *told["wrong"]]
        return told

    def look(self) -> None:
        """Read the run once."""
        try:
            live = read_live(self.store, self.run_id, time.time())
            others = () if live.facts.exists else tuple(known_runs(self.store)[:MOST_KNOWN])
        except Exception as error:  # noqa: BLE001  # whatever it is: the page says so, and the next look may work
            self._tell_fault(error)
            return
        beat = (live.facts.pulse, live.facts.newest)
        if beat != self._beat[0]:
            self._beat = (beat, time.monotonic())
        before, self.reading, self.fault = self.reading, Reading(live, others), ""
        if live.facts.exists and (before is None or before.live.mark != live.mark):
            self._changed.set()

    def _tell_fault(self, error: Exception) -> None:
        if not self.fault:
            self.fault_since = time.time()
        if isinstance(error, UserError) or (isinstance(error, StoreError) and error.code in NO_STORE):
            self.fault = f"there is no store {self.store.uri} yet"
        else:
            self.fault = str(error) if isinstance(error, StoreError) else f"{type(error).__name__}: {error}"

    def build(self) -> None:
        """Build the report once."""
        try:
            page = build_report(self.store, self.run_id).files["index.html"]
        except UserError as error:  # nothing that a report could show is there yet
            self.report_fault = "" if not self.report else str(error)
        except Exception as error:  # noqa: BLE001  # whatever it is: the figures above it are right all the same
            self.report_fault = f"the report could not be built: {type(error).__name__}: {error}"
            self._changed.set()  # the next one may be
        else:
            self.report_fault = ""
            if page != self.report:
                self.report, self.report_number = page, self.report_number + 1

    def _look_forever(self) -> None:
        while not self._stopped.is_set():
            if time.monotonic() > self._asked_at + UNWATCHED_SECONDS:
                self._asked.clear()
                self._asked.wait()
            self.look()
            self._stopped.wait(self.seconds)

    def _build_forever(self) -> None:
        while not self._stopped.is_set():
            self._changed.wait()
            self._changed.clear()
            self.build()
            self._stopped.wait(REPORT_SECONDS)
