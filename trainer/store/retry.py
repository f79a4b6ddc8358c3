"""Trying again while a store fails: with growing pauses, few words, and an end that may come nearer."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from trainer.store import NotFoundError, StoreError, explained, may_pass

T = TypeVar("T")
COMPLAIN_SECONDS = 60  # a store that fails is mentioned no more often
PAUSE_SECONDS = 10.0  # between two tries, at most: all shall be durable soon after the fault


def say(message: str) -> None:
    print(f"uploader: {message}", file=sys.stderr, flush=True)


class Patience:
    """Safe to use from several threads."""

    def __init__(self) -> None:
        self.deadline = float("inf")  # monotonic seconds
        self.hurry = threading.Event()  # the deadline has come nearer: no long pauses
        self.complained = float("-inf")

    def until_done(self, what: str, work: Callable[[], None]) -> bool:
        """Do it, again and again while the store fails, until the deadline; False when that has passed."""
        pause = 0.5
        while True:
            try:
                work()
            except StoreError as error:
                now = time.monotonic()
                if now >= self.deadline:
                    say(f"gave up on {what}: {error}")
                    return False
                self.complain(f"the store fails, trying {what} again, and training goes on: {error}")
                self.hurry.wait(min(pause, max(0.0, self.deadline - now)))
                self.hurry.clear()
                pause = min(pause * 2, PAUSE_SECONDS)
            else:
                return True

    def end_in(self, seconds: float) -> None:
        """Try for so long at most from now on, or for as long as was said before."""
        self.deadline = min(self.deadline, time.monotonic() + seconds)
        self.hurry.set()

    @property
    def has_an_end(self) -> bool:
        return self.deadline < float("inf")

    def complain(self, message: str) -> None:
        """Say it, unless something was said less than a minute ago."""
        if time.monotonic() >= self.complained + COMPLAIN_SECONDS:
            self.complained = time.monotonic()
            say(message)


RESTORE_SECONDS = 300.0  # how long a start waits for a store that fails


def patiently(
    what: str,
    work: Callable[[], T],
    tell: Callable[[str], None],
    seconds: float = RESTORE_SECONDS,
    worth_it: Callable[[StoreError], bool] = lambda error: True,
) -> T:
    """Do it again and again while the store fails. Then UserError where the user can mend it, else StoreError."""
    deadline, pause, told = time.monotonic() + seconds, 0.5, float("-inf")
    while True:
        try:
            return work()
        except NotFoundError:
            raise
        except StoreError as error:
            now = time.monotonic()
            if now >= deadline or not worth_it(error):
                if may_pass(error):  # nobody's mistake: the next start tries again
                    raise
                with explained(what if now < deadline else f"after {seconds:.0f} s of trying, {what}"):
                    raise
            if now >= told + 60:
                tell(f"{what} cannot be read, trying again for up to {deadline - now:.0f} s: {error}")
                told = now
            time.sleep(min(pause, deadline - now))
            pause = min(pause * 2, 10.0)
