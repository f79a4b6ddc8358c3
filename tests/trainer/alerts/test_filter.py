"""What is told of all that could be."""

from __future__ import annotations

from tests.trainer.alerts.receiver import made
from trainer.alerts import HEALTH_KINDS
from trainer.alerts.filter import AlertFilter, RateLimit


def test_each_complaint_is_told_once_in_a_quarter_of_an_hour_whatever_its_words() -> None:
    told = AlertFilter()
    for kind in (*HEALTH_KINDS, "best"):
        at = [0.0, 10.0, 899.0, 900.0, 1000.0, 1799.0, 1800.0]
        passed = [time for time in at if told.admits(made(kind, f"data wait {time} %", time))]
        assert passed == [0.0, 900.0, 1800.0], kind


def test_a_complaint_that_has_become_graver_is_told_at_once() -> None:
    told = AlertFilter()
    assert told.admits(made("store-stalled", "a checkpoint is late", 0.0, "warning"))
    assert told.admits(made("store-stalled", "the run waits for the store", 400.0, "error"))
    assert not told.admits(made("store-stalled", "the run waits for the store", 700.0, "error"))
    assert not told.admits(made("store-stalled", "a checkpoint is late", 700.0, "warning"))


def test_what_happens_to_a_run_is_told_whenever_it_is_new_and_never_twice() -> None:
    told = AlertFilter()
    texts = ["attempt 2 goes on from step 100", "attempt 3 goes on from step 100", "attempt 2 goes on from step 100"]
    assert [told.admits(made("resumed", text)) for text in texts] == [True, True, False]
    assert told.admits(made("interrupted", texts[0]))


def test_a_clock_that_jumps_silences_nothing_for_long() -> None:
    told = AlertFilter()
    assert told.admits(made("starved", at=1e9))
    assert told.admits(made("starved", at=1000.0))  # the clock was a year ahead, and was set
    assert not told.admits(made("starved", at=1010.0))


def test_a_flood_of_messages_is_cut_and_the_end_of_the_run_is_told_all_the_same() -> None:
    limit = RateLimit(most=3)
    assert [limit.admits(made(at=float(second))) for second in range(5)] == [True, True, True, False, False]
    assert limit.admits(made("failed", at=5.0))
    assert limit.admits(made("finished", at=5.0))
    assert limit.admits(made(at=3600.0))
    assert not limit.admits(made(at=3600.5))
