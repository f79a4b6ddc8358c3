"""A task in a thread that nobody has to wait for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def in_background(task: Callable[[], T]) -> Future[T]:
    """Do it in a thread that Python's exit does not wait for, as it does for a pool's: S3 may take minutes to answer.

    The future has the task's result, or raises its error.
    """
    done = Future[T]()

    def work() -> None:
        try:
            done.set_result(task())
        except BaseException as error:  # noqa: BLE001  # raised by whoever asks for the result
            done.set_exception(error)

    threading.Thread(target=work, name="background", daemon=True).start()
    return done
