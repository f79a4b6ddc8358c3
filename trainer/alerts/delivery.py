"""Sends alerts to a webhook in the background: whoever hands one in never waits, and no failure reaches the run."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping

from trainer.alerts import Alert
from trainer.alerts.filter import NEVER_LIMITED, RateLimit
from trainer.alerts.webhook import REQUEST_SECONDS, Post, RefusedAlertError, Webhook, find_webhook, message
from trainer.contract import UserError

MOST_WAITING = 64  # alerts; of more, the oldest are given up
TRIES_OF_AN_ALERT = 4  # of one alert
FIRST_RETRY_SECONDS = 1.0  # each further pause is four times as long
LAST_RETRY_SECONDS = 0.5  # the pause while the delivery ends
PATIENT_SHARE = 1 / 3  # of the end: so long the order counts, then how a run has ended goes first
COMPLAINT_SECONDS = 900.0  # a webhook that fails is mentioned no more often


class Delivery:
    """A thread, and the alerts that wait for it."""

    def __init__(self, webhook: Webhook, say: Callable[[str], None]) -> None:
        self.webhook, self.say = webhook, say
        self.limit = RateLimit()
        self.waiting: deque[Alert] = deque()
        self.unsent = 0  # alerts before the next one that is sent
        self.complained = float("-inf")
        self.stuck: Post | None = None
        self.until = float("inf")  # when the thread must end, in monotonic time
        self.hurried = float("inf")  # when the end of the run goes before what waits, likewise
        self.changed = threading.Condition()
        self.thread: threading.Thread | None = None  # which the first alert needs

    @classmethod
    def open(cls, environ: Mapping[str, str], say: Callable[[str], None]) -> Delivery | None:
        """The delivery to the webhook of this environment. None if it names none, or a wrong one, which is said."""
        try:
            webhook = find_webhook(environ)
        except UserError as error:
            say(f"alerts go to no webhook: {error}")
            return None
        return cls(webhook, say) if webhook else None

    def send(self, alert: Alert) -> None:
        """Hand in an alert. Never waits, and raises nothing."""
        with self.changed:
            self._begin()
            if self.limit.admits(alert):
                self.waiting.append(alert)
            else:
                self.unsent += 1
            if len(self.waiting) > MOST_WAITING:
                self.waiting.popleft()
                self.unsent += 1
            self.changed.notify_all()

    def close(self, seconds: float = 3.0) -> None:
        """Send what is waiting, for at most so long. What is left then is said."""
        with self.changed:
            self.until = time.monotonic() + seconds
            self.hurried = time.monotonic() + seconds * PATIENT_SHARE
            self.changed.notify_all()
        if self.thread is not None:
            self.thread.join(seconds + 0.5)
        with self.changed:
            left = len(self.waiting)
            self.waiting.clear()
        if left:
            self.say(f"the webhook has not taken {left} alert{'s' * (left > 1)} in the time that was left")

    def _begin(self) -> None:
        """Start the thread. A machine that has none left is asked again with the next alert."""
        if self.thread is None:
            thread = threading.Thread(target=self._work, daemon=True, name="alerts")
            with contextlib.suppress(RuntimeError):
                thread.start()
                self.thread = thread

    def _work(self) -> None:
        while alert := self._next():
            try:
                self._deliver(alert)
            except RefusedAlertError as error:
                if alert is not self._first():  # it gives way to the end of the run, and waits
                    continue
                self._complain(f"the webhook did not take an alert ({alert.kind}): {error}; the run goes on")
                with self.changed:
                    self.unsent += 1
            with self.changed, contextlib.suppress(ValueError):  # one of too many was given up meanwhile
                self.waiting.remove(alert)

    def _next(self) -> Alert | None:
        """The alert that is to be sent next, which stays in the queue until it is sent. None: the end."""
        with self.changed:
            while not self.waiting and self.until == float("inf"):
                self.changed.wait()
            return self._first() if time.monotonic() < self.until else None

    def _first(self) -> Alert | None:
        """The alert that has waited longest; but when time runs out, how the run has ended."""
        with self.changed:
            ends = [alert for alert in self.waiting if alert.kind in NEVER_LIMITED]
            urgent = ends[-1:] if time.monotonic() >= self.hurried else []
            return next(iter([*urgent, *self.waiting]), None)

    def _end_of_try(self, alert: Alert) -> float:
        """When this alert must give way, in monotonic time."""
        with self.changed:
            gives_way = any(other.kind in NEVER_LIMITED and other is not alert for other in self.waiting)
        return self.hurried if gives_way and alert.kind not in NEVER_LIMITED else self.until

    def _deliver(self, alert: Alert) -> None:
        """Raises RefusedAlertError if the webhook does not take it after some tries."""
        unsent = self.unsent
        body = message(alert, self.webhook.form, unsent)
        pause = FIRST_RETRY_SECONDS
        for tried in range(1, TRIES_OF_AN_ALERT + 1):
            try:
                self._post(alert, body)
            except RefusedAlertError as error:
                if error.pause is None or tried == TRIES_OF_AN_ALERT:
                    raise
                self._wait(alert, error.pause, pause)
                if time.monotonic() >= self._end_of_try(alert):
                    raise
                pause *= 4
            else:
                with self.changed:
                    self.unsent -= unsent
                return

    def _complain(self, line: str) -> None:
        if time.monotonic() - self.complained >= COMPLAINT_SECONDS:
            self.complained = time.monotonic()
            self.say(line)

    def _post(self, alert: Alert, body: bytes) -> None:
        is_last_try = alert.kind in NEVER_LIMITED and self.until < float("inf")
        if self.stuck and self.stuck.is_stuck and not is_last_try:
            raise RefusedAlertError("it has not yet answered an earlier message", pause=0)
        self.stuck = Post(self.webhook, body, self.changed)
        self.stuck.wait(REQUEST_SECONDS, lambda: self._end_of_try(alert))

    def _wait(self, alert: Alert, asked: float, pause: float) -> None:
        """Pause before another try: for `pause`, or longer if the server asked for it. The delivery's end hurries."""
        began = time.monotonic()
        with self.changed:
            while True:
                is_ending = self.until < float("inf")
                end = began + max(asked, LAST_RETRY_SECONDS if is_ending else pause)
                left = min(end, self._end_of_try(alert)) - time.monotonic()
                if left <= 0:
                    return
                self.changed.wait(left)
