"""What a machine writes, and what goes wrong in telling of it, keeps the guard from nothing that saves money."""

from __future__ import annotations

import pytest

from infra.guard import notices
from tests.infra.fleets import RUN, Lab
from trainer.contract import run_key


@pytest.mark.parametrize("forged", [{"attempt": True}, {"attempt": True, "step": True}])
def test_a_forged_attempt_leaves_a_memory_that_the_next_guard_can_read(lab: Lab, forged: dict[str, object]) -> None:
    lab.launch()
    lab.put(run_key(RUN, "heartbeat.json"), {"phase": "training", "step": 1, "progress": 1} | forged)
    for minute in range(1, 3):
        assert lab.tick(minute) == []
        assert type(lab.memory().attempt) is int
    assert lab.mail() == []


def test_without_a_memory_that_can_be_stored_there_is_no_news_and_the_run_is_still_stopped(lab: Lab) -> None:
    lab.launch(budget_usd=0.15)
    lab.beat()
    lab.put(run_key(RUN, "guard.json"), b'{"attempt": "one"}')
    for minute in range(1, 4):
        assert any("guard.json is not valid" in problem for problem in lab.tick(minute))
    assert lab.mail() == []
    lab.tick(29)
    assert lab.desired() == 0
    (mail,) = lab.mail()
    assert "the budget" in mail


def test_a_mistake_in_the_news_neither_stops_a_healthy_run_nor_keeps_a_spent_one(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.launch(budget_usd=0.15)

    def broken(*arguments: object) -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(notices, "due", broken)
    lab.beat()
    assert lab.tick(16) == ["news: a mistake"]
    assert lab.desired() == 1
    assert lab.mail() == []
    assert lab.memory().mark.startswith("attempt 1, training"), "it is remembered as ever"
    assert lab.tick(29) == ["news: a mistake"]
    assert lab.desired() == 0
    assert lab.memory().stopped
    (mail,) = lab.mail()
    assert "the budget" in mail
