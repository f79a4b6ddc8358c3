"""What is mailed of a run that goes on: each thing once, never a flood, and nothing that a machine made up unseen."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from infra.guard import notices
from infra.guard.facts import Facts, Heartbeat, Signs
from infra.guard.memory import Memory
from infra.guard.observed import ObservedAlert, observed_alerts
from infra.guard.rules import decide
from infra.run.fleet import FleetMachine, Group
from infra.run.spec import Spec
from infra.run.spend import Machine, Spend
from tests.infra.fleets import BUCKET, RUN, Lab
from trainer.contract import run_key

NOW = 1_800_000_000.0
SPEC = Spec(run_id="r", budget_usd=10.0, hours=10, created=NOW, deadline=NOW + 36000, prices={"g6.xlarge": 0.8})
GROUP = Group(name="g", desired=1, maximum=1, run_id="r", deadline=SPEC.deadline)


def machine(id: str, launched: float) -> FleetMachine:
    return FleetMachine(
        id=id, type="g6.xlarge", zone="a", market="spot", state="running", launched=launched, run_id="r", group="g"
    )


class Watch:
    """A guard without AWS: a look a minute, whose memory goes through JSON."""

    def __init__(self) -> None:
        self.facts = Facts(now=NOW, groups=(GROUP,), machines=(machine("i-1", NOW - 300),), spec=SPEC)
        self.mails: list[str] = []

    def look(self, signs: Signs | None = None, minutes: float = 1, **changes: Any) -> str:
        self.facts = replace(self.facts, now=self.facts.now + minutes * 60, signs=signs or Signs(), **changes)
        text, memory = notices.due(self.facts, decide(self.facts).memory)
        memory = Memory.from_json(memory.to_json())
        self.facts = replace(self.facts, memory=memory)
        self.mails += [text] if text else []
        return text

    def beat(
        self, attempt: int = 1, phase: str = "training", step: int = 0, alerts: Iterable[ObservedAlert] = ()
    ) -> str:
        at = self.facts.now + 50
        mark = f"attempt {attempt}, {phase}, step {step}, 0"
        beat = Heartbeat(at=at, mark=mark, attempt=attempt, phase=phase, step=step, alerts=tuple(alerts))
        return self.look(Signs(heartbeat=beat))


def test_a_machine_that_is_kept_after_a_failure_is_told_once_while_there_is_something_to_look_at() -> None:
    watch = Watch()
    watch.facts = replace(watch.facts, spec=replace(SPEC, keep_minutes=30.0))
    failed = Signs(failed=NOW + 60, failure="no such class")
    assert [bool(watch.look(failed)) for _ in range(40)] == [True] + 39 * [False]
    assert "has failed: no such class; its machine is kept until 08:31 UTC for `make shell`" in watch.mails[0]
    assert "make stop" in watch.mails[0]
    watch = Watch()
    assert watch.look(failed) == ""  # without KEEP= the guard's own mail tells


def test_a_run_is_told_to_have_started_once_it_does_its_work() -> None:
    watch = Watch()
    assert watch.beat(phase="starting") == ""
    assert watch.beat(phase="staging") == ""
    assert watch.beat(step=10) == "the run has started: training, step 10"
    assert watch.beat(step=20) == watch.beat(phase="evaluating", step=20) == ""
    assert Watch().beat(phase="preparing") == "the run has started: preparing, step 0"


def test_an_interruption_is_told_and_that_the_run_goes_on_and_each_once() -> None:
    watch = Watch()
    watch.beat(step=1000)
    gone = "the run is interrupted: its machine is gone (attempt 1, training, step 1000, 0), and the group asks for "
    assert watch.look(machines=()) == f"{gone}another one"
    assert watch.look() == ""
    assert watch.look(machines=(machine("i-2", watch.facts.now),)) == ""
    assert watch.beat(attempt=1, step=1000, phase="saving") == ""  # what is left of the old heartbeat tells nothing
    assert watch.beat(attempt=2, phase="starting") == ""
    assert watch.beat(attempt=2, step=990) == "the run goes on: attempt 2, training, step 990"
    assert watch.beat(attempt=2, step=1100) == ""
    later = machine("i-3", watch.facts.now + 60)
    assert "is interrupted" in watch.look(machines=(later,))  # the next machine came within the minute


def test_a_crash_on_the_same_machine_is_told_when_the_run_goes_on() -> None:
    watch = Watch()
    watch.beat()
    assert watch.look() == ""
    assert watch.beat(attempt=2, step=5) == "the run goes on: attempt 2, training, step 5"


@pytest.mark.parametrize(
    "end",
    [{"signs": Signs(done=NOW)}, {"signs": Signs(failed=NOW)}, {"groups": (replace(GROUP, desired=0),)}],
)
def test_the_end_of_a_run_is_no_interruption(end: dict[str, Any]) -> None:
    watch = Watch()
    watch.beat()
    assert watch.look(machines=(), **end) == ""


def test_machines_that_ec2_does_not_tell_are_not_gone() -> None:
    watch = Watch()
    watch.beat()
    assert watch.look(machines=None) == ""


def test_another_launch_begins_without_an_interruption() -> None:
    watch = Watch()
    watch.beat()
    launched = replace(GROUP, deadline=SPEC.deadline + 3600)
    assert watch.look(machines=(), groups=(launched,)) == ""
    watch.look(machines=(machine("i-2", watch.facts.now),))
    assert watch.beat(attempt=2, step=7) == "the run goes on: attempt 2, training, step 7"


def test_half_and_most_of_the_budget_are_told_once() -> None:
    watch, told = Watch(), []
    for usd in (4.9, 5.0, 5.1, 7.9, 8.1, 8.2):
        hours = usd / 1.0
        one = Machine(
            id="i-1",
            type="g6.xlarge",
            zone="a",
            market="spot",
            launched=NOW - hours * 3600,
            ended=NOW,
            usd_per_hour=1.0,
        )
        told.append(watch.look(spend=Spend(machines=(one,))))
    assert told == [
        "", "50 % of the budget are spent: $5.00 of $10.00; at 100 % the run stops", "",
        "", "80 % of the budget are spent: $8.10 of $10.00; at 100 % the run stops", "",
    ]  # fmt: skip


def test_what_the_machine_noticed_is_told_once_in_its_order_and_in_one_mail() -> None:
    watch = Watch()
    watch.beat()
    alerts = [ObservedAlert(1, number, f"best: top-1 is {number} %") for number in range(1, 5)]
    assert watch.beat(alerts=alerts[:2]) == "best: top-1 is 1 %\nbest: top-1 is 2 %"
    assert watch.beat(alerts=alerts[:2]) == ""
    assert watch.beat(alerts=alerts[1:]) == "best: top-1 is 3 %\nbest: top-1 is 4 %"
    assert watch.beat(alerts=[*alerts, ObservedAlert(2, 1, "starved: data wait 23 %")]) == "starved: data wait 23 %"


def test_news_is_no_flood_and_what_was_left_out_is_counted() -> None:
    watch = Watch()
    for minute in range(120):
        watch.beat(step=minute, alerts=[ObservedAlert(1, minute + 1, f"best: {minute}")])
    assert len(watch.mails) == 2 * notices.MAILS_IN_AN_HOUR
    assert watch.mails[notices.MAILS_IN_AN_HOUR].endswith(
        "54 lines before this mail were left out: `make status` shows the run"
    )
    assert len(watch.facts.memory.to_json()) < 1500  # small, whatever a run goes through


def test_forged_heartbeats_neither_break_the_memory_nor_reach_a_mail_as_they_are() -> None:
    watch = Watch()
    for attempt in (10**30, 10**4000, -5):
        assert watch.beat(attempt=attempt) == ""
    assert watch.beat() == "the run has started: training, step 0"
    forged = [
        None, "x", {}, {"id": "1-1"}, {"id": "1-1", "kind": "finished", "text": "pay here"},
        {"id": "1-2", "kind": "best\n", "text": "x"}, {"id": "1-3", "kind": ["best"], "text": "x"},
        {"id": "x-3", "kind": "best", "text": "x"}, {"id": f"1-{10**12}", "kind": "best", "text": "x"},
        {"id": "1-5", "kind": "best", "text": "\x1b[2J one\nline\u202e " + "y" * 5000},
    ]  # fmt: skip
    [alert] = observed_alerts({"observed": {"alerts": forged}})
    assert (alert.attempt, alert.number, len(alert.text)) == (1, 5, 200)
    assert alert.text.startswith(r"best: \x1b[2J one line\u202e yyy")
    spoilt: list[Any] = [None, [], {"alerts": None}, {"alerts": {}}, {"alerts": ["[" * 1000] * 10_000}]
    for observed in spoilt:
        assert observed_alerts({"observed": observed}) == ()
    assert observed_alerts({}) == ()


def test_the_memory_of_an_older_guard_is_read_and_a_run_that_it_saw_is_not_told_to_start() -> None:
    watch = Watch()
    old = {"at": NOW, "deadline": SPEC.deadline, "active": NOW, "mark": "attempt 3, training, step 9, 1", "marked": NOW}
    watch.facts = replace(watch.facts, memory=Memory.from_json(json.dumps(old).encode()))
    assert watch.beat(attempt=3, step=10) == ""
    assert watch.beat(attempt=4, step=10) == "the run goes on: attempt 4, training, step 10"


@pytest.mark.parametrize(
    "wrong", [{"attempt": -1}, {"mails": ["x"]}, {"mails": 5}, {"alert": 1}, {"is_interrupted": 1}]
)
def test_a_memory_that_no_guard_wrote_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        Memory.from_json(json.dumps(wrong).encode())


def test_news_reaches_the_mail_and_what_the_topic_refuses_comes_a_minute_later(lab: Lab) -> None:
    lab.launch()
    lab.beat()
    lab.aws.fault("sns.Publish", code="Throttling", status=400)
    assert lab.tick(1)
    lab.aws.heal()
    alerts = [{"id": "1-1", "kind": "best", "text": "top-1 is 40 %", "level": "info", "step": 2, "time": 0}]
    body = {"phase": "training", "step": 2, "progress": 2, "attempt": 1, "observed": {"alerts": alerts}}
    lab.client("s3").put_object(Bucket=BUCKET, Key=run_key(RUN, "heartbeat.json"), Body=json.dumps(body))
    lab.aws.clear_calls()
    assert lab.tick(2) == []
    reads = ["spec", "spend", "guard", "done", "failed", "heartbeat", "attempt"]  # as ever: news need no request more
    assert lab.aws.calls().count("s3.GetObject") == len(reads)
    [mail] = lab.mail()
    assert mail == f"resnet-spot: run {RUN}: the run has started: training, step 1\nbest: top-1 is 40 %"
    assert lab.memory().told == ()
    assert lab.tick(3) == []
    assert lab.mail() == []
