"""Trying again while a store fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from trainer.contract import UserError
from trainer.store import ConflictError, NotFoundError, StoreError
from trainer.store.retry import Retry, patiently


def failing(times: int, error: Exception) -> Callable[[], str]:
    """Work that fails so often, and then is done."""
    left = iter(range(times))

    def work() -> str:
        if next(left, None) is not None:
            raise error
        return "done"

    return work


def test_work_is_tried_again_until_it_is_done_and_a_fault_is_mentioned_once_a_minute() -> None:
    said: list[str] = []
    retry = Retry(said.append)
    for _ in range(2):
        assert retry.until_done(failing(1, StoreError("it is down")), lambda left: "trying again") == "done"
    assert said == ["trying again: it is down"]


def test_a_deadline_that_comes_nearer_ends_the_pause_and_the_last_fault_is_raised() -> None:
    retry, began = Retry(lambda line: None), time.monotonic()
    assert not retry.has_an_end
    threading.Timer(0.1, retry.end_in, [0.0]).start()
    with pytest.raises(StoreError, match="it is down"):
        retry.until_done(failing(1000, StoreError("it is down")), lambda left: "trying again")
    assert time.monotonic() < began + 0.5, "the first pause alone is as long"
    retry.end_in(60)
    assert retry.deadline < time.monotonic(), "a deadline never moves away"


def test_what_is_not_worth_another_try_is_raised_at_once() -> None:
    said: list[str] = []
    with pytest.raises(UserError, match="a mistake"):
        Retry(said.append).until_done(failing(1, UserError("a mistake")), lambda left: "trying again")
    with pytest.raises(ConflictError):
        Retry(said.append).until_done(failing(1, ConflictError("taken")), lambda left: "", lambda error: False)
    with pytest.raises(NotFoundError):
        patiently("the store", failing(1, NotFoundError("no key")), said.append)
    assert not said


@pytest.mark.parametrize(("code", "kind"), [("SlowDown", StoreError), ("AccessDenied", UserError)])
def test_in_the_end_a_fault_that_the_user_can_mend_is_a_mistake_and_names_its_fix(
    code: str, kind: type[Exception]
) -> None:
    said: list[str] = []
    with pytest.raises(kind) as caught:
        patiently("the store", failing(1000, StoreError("it says no", code)), said.append, seconds=0.2)
    assert said == ["the store cannot be read, trying again for up to 0 s: it says no"]
    if kind is UserError:
        assert str(caught.value).startswith("after 0 s of trying, the store cannot be used: it says no; allow the role")
