"""Runs a task in a thread for which the end of the process does not wait."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def in_background(task: Callable[[], T]) -> Future[T]:
    """Run the task in a daemon thread, and return the future of its result.

    Python waits for the threads of a pool before it exits, and S3 may take minutes to answer.
    """
    done = Future[T]()

    def work() -> None:
        try:
            done.set_result(task())
        except BaseException as error:  # noqa: BLE001  # raised by whoever asks for the result
            done.set_exception(error)

    threading.Thread(target=work, name="background", daemon=True).start()
    return done
