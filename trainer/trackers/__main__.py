"""The command: `python -m trainer.trackers --store out --run-id digits --to mlflow`. Follows a run, feeds a tracker.

It may be killed at any instant and started again: the tracker is asked which step it has, and gets the later ones.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import tyro

from trainer.contract import CRASH, Exit, RunEnv, UserError
from trainer.store import ObjectStore, StoreError, open_store
from trainer.telemetry.metrics import Row
from trainer.text import forgive_output, say, tell
from trainer.trackers.committed import CommittedRows, check_exists, config_of
from trainer.trackers.tracker import (
    TRACKERS,
    Position,
    TrackedRun,
    Tracker,
    TrackerError,
    check_tracker,
    open_tracker,
    target_of,
)

FEED_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True)
class Options:
    """Give the metrics of a run to a tracker as they are committed, until the run ends."""

    store: str
    """Where the run lives: s3://bucket/prefix or a directory; else $TRAINER_STORE."""
    run_id: str
    """The run to follow; else $TRAINER_RUN_ID."""
    to: str = ""
    """The tracker: wandb, mlflow or trackio."""
    once: bool = False
    """Give what is there now, and end."""


class Feed:
    """A run on its way to a tracker. Each step gets there once, in whichever process."""

    def __init__(self, store: ObjectStore, run_id: str, to: str) -> None:
        self.store, self.run_id, self.to = store, run_id, to
        self.source = CommittedRows(store, run_id)
        self.tracker: Tracker | None = None
        self.position: Position | None = None
        self.ended = ""
        self.told = ""

    def pass_on(self) -> None:
        """Give what has been committed since the last call. Raises StoreError, TrackerError, UserError."""
        committed = self.source.read()
        if committed is None:
            return
        if committed.began is None or not committed.rows:
            self.tell_once(f"run {self.run_id!r} has no step yet that a later checkpoint or its end has settled")
        else:
            try:
                self.give(committed.rows, committed.began)
            except TrackerError:
                self.tracker, self.source.seen = None, None  # from here again
                raise
        self.ended = committed.ended

    def give(self, rows: Sequence[Row], began: float) -> None:
        if self.tracker is None:
            run = TrackedRun(self.run_id, began, config_of(self.store, self.run_id))
            self.tracker = open_tracker(self.to, run)
            self.position = self.tracker.position()
        if complaint := undone(rows, self.position):
            self.tell_once(complaint)
        if new := beyond(rows, self.position):
            self.tracker.feed(new)
            self.position = Position(new[-1]["step"], new[-1]["time"])
            say(f"steps {new[0]['step']:,} to {new[-1]['step']:,} given to {self.tracker.where}")

    def tell_once(self, text: str) -> None:
        if text != self.told:
            say(text)
        self.told = text

    def close(self) -> None:
        if self.tracker is not None:
            self.tracker.close(self.ended)

    def close_after_error(self) -> None:
        """The error that ends the command is on its way: that of the end is said, and does not hide it."""
        try:
            self.close()
        except (TrackerError, UserError) as error:
            say(f"the end could not be told to the tracker: {error}")


def beyond(rows: Sequence[Row], position: Position | None) -> Sequence[Row]:
    """The rows that a tracker at this position lacks."""
    return [row for row in rows if position is None or row["step"] > position.step]


def undone(rows: Sequence[Row], position: Position | None) -> str:
    """What to say if the run went back, by a rewind, behind what the tracker has: it takes no step back."""
    if position is None:
        return ""
    same = next((row for row in reversed(rows) if row["step"] == position.step), None)
    if same is not None and (position.time is None or abs(same["time"] - position.time) < 0.01):
        return ""
    return (
        f"the tracker has steps up to {position.step:,} that the run undid, or did again: it takes no step back, so "
        "these stay there as they were, and later ones follow"
    )


def feed_until_end(feed: Feed, *, once: bool) -> None:
    """Until the run ends. Raises UserError; and StoreError and TrackerError, if it is for once."""
    while True:
        try:
            feed.pass_on()
        except (StoreError, TrackerError) as error:
            if once:
                raise
            feed.tell_once(f"{error}: trying again every {FEED_SECONDS:.0f} s")
        if once or feed.ended:
            return
        time.sleep(FEED_SECONDS)


@contextmanager
def only_one(store: ObjectStore, run_id: str, to: str) -> Iterator[None]:
    """Raises UserError while another process of this user feeds the same: both would give the same steps."""
    digest = hashlib.sha256(f"{store.uri} {run_id} {to} {target_of(to)}".encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "resnet-spot")
    path = folder / f"track-{digest}.lock"
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            fcntl.flock(stack.enter_context(path.open("a")), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another `make track` gives run {run_id!r} to {TRACKERS[to][1]}: end it first") from None
        except OSError as error:
            fix = "make the folder yours, or set XDG_CACHE_HOME to one that is"
            raise UserError(f"{path}, which keeps two commands apart, cannot be locked ({error}): {fix}") from error
        yield


def track(options: Options) -> Exit:
    """Raises UserError, StoreError, TrackerError."""
    to = check_tracker(options.to)
    store = open_store(options.store)
    check_exists(store, options.run_id)
    feed = Feed(store, options.run_id, to)
    with only_one(store, options.run_id, to):
        try:
            feed_until_end(feed, once=options.once)
        except BaseException:
            feed.close_after_error()
            raise
        feed.close()
    if feed.ended:
        say(f"run {options.run_id!r} is {feed.ended}")
    return Exit.FINISHED


def main(arguments: list[str] | None = None) -> int:
    store, run_id = (os.environ.get(RunEnv.variable(name)) or tyro.MISSING for name in ("store", "run_id"))
    given = Options(store=store, run_id=run_id)
    try:
        options = tyro.cli(Options, default=given, prog="python -m trainer.trackers", args=arguments)
    except SystemExit as stop:  # tyro has said what is wrong
        return Exit.USER if stop.code else Exit.FINISHED
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return track(options)
    except UserError as error:
        tell(f"error: {error}", sys.stderr)
        return Exit.USER
    except (StoreError, TrackerError) as error:
        tell(f"error: {error}", sys.stderr)
        return CRASH
    except KeyboardInterrupt:
        say("stopped; the same command goes on from there")
        return Exit.INTERRUPTED


if __name__ == "__main__":
    forgive_output()
    sys.exit(main())
