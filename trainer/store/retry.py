"""Trying again while a store fails: growing pauses, few words, and a deadline that may come nearer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from trainer.contract import UserError
from trainer.store import NotFoundError, StoreError, may_pass, naming_the_fix

T = TypeVar("T")
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 10.0  # after a longer fault, all work is in the store this soon
COMPLAIN_SECONDS = 60.0  # a store that fails is mentioned no more often
READ_SECONDS = 300.0  # how long a start waits for a store that cannot be read


def is_fault(error: Exception) -> bool:
    """Whether a store has failed, as opposed to a UserError, which names a mistake."""
    return isinstance(error, StoreError)


class Retry:
    """A deadline, and what was said last. Several threads may share one."""

    def __init__(self, say: Callable[[str], None], seconds: float = float("inf")) -> None:
        self.say = say
        self.deadline = time.monotonic() + seconds
        self.hurry = threading.Event()  # set when the deadline comes nearer: it ends a pause
        self.complained = float("-inf")

    def until_done(
        self, work: Callable[[], T], complaint: Callable[[float], str],
        is_worth_it: Callable[[Exception], bool] = is_fault,
    ) -> T:  # fmt: skip
        """Do the work, again and again while it fails, and return its result. `complaint(seconds left)` is said.

        Raises the StoreError or UserError that came last, past the deadline or where it is not worth another try.
        """
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                return work()
            except (StoreError, UserError) as error:
                left = self.deadline - time.monotonic()
                if left <= 0 or not is_worth_it(error):
                    raise
                self.complain(f"{complaint(left)}: {error}")
                self.hurry.wait(min(pause, left))
                self.hurry.clear()
                pause = min(pause * 2, LONGEST_PAUSE_SECONDS)

    def end_in(self, seconds: float) -> None:
        """Bring the deadline nearer: to so many seconds from now, unless it is earlier already."""
        self.deadline = min(self.deadline, time.monotonic() + seconds)
        self.hurry.set()

    @property
    def has_an_end(self) -> bool:
        return self.deadline < float("inf")

    def complain(self, message: str) -> None:
        """Say it, unless something was said less than a minute ago."""
        if time.monotonic() >= self.complained + COMPLAIN_SECONDS:
            self.complained = time.monotonic()
            self.say(message)


def patiently(
    what: str,
    work: Callable[[], T],
    tell: Callable[[str], None],
    seconds: float = READ_SECONDS,
    worth_it: Callable[[Exception], bool] = is_fault,
) -> T:
    """Read something at a start. In the end it raises UserError where the user can mend the fault, else StoreError.

    A key that does not exist is no fault: its NotFoundError is raised at once.
    """
    retry = Retry(tell, seconds)
    try:
        return retry.until_done(
            work, lambda left: f"{what} cannot be read, trying again for up to {left:.0f} s",
            lambda error: is_fault(error) and not isinstance(error, NotFoundError) and worth_it(error),
        )  # fmt: skip
    except StoreError as error:
        if isinstance(error, NotFoundError) or may_pass(error):  # nobody's mistake: the next start tries again
            raise
        is_late = time.monotonic() >= retry.deadline
        with naming_the_fix(f"after {seconds:.0f} s of trying, {what}" if is_late else what):
            raise
