"""The guards as functions: what they see, what they decide, and what they leave alone because it is not known."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from io import BytesIO
from types import SimpleNamespace
from typing import Any

import pytest

from infra.guard import reading, rules
from infra.guard.facts import Facts, Heartbeat, Signs
from infra.guard.memory import Memory
from infra.guard.prices import Price, SpotHistory, price
from infra.guard.reading import CautiousBucket, KnownRun
from infra.guard.rules import Decision, decide
from infra.run.fleet import FleetMachine, Group
from infra.run.spec import Spec
from infra.run.spend import Machine, Spend

NOW = 1_800_000_000.0
MINUTE = 60.0
SPEC = Spec(run_id="r", budget_usd=10.0, hours=10, created=NOW, deadline=NOW + 36000, prices={"g6.xlarge": 0.8})
GROUP = Group(name="g", desired=1, maximum=1, run_id="r", deadline=SPEC.deadline)
MACHINE = FleetMachine(
    id="i-1", type="g6.xlarge", zone="a", market="spot", state="running", launched=NOW - 3600, run_id="r", group="g"
)
WELL = Facts(
    now=NOW, groups=(GROUP,), machines=(MACHINE,), spec=SPEC, signs=Signs(heartbeat=Heartbeat(at=NOW - 10, mark="7")),
    memory=Memory(at=NOW - 60, active=NOW - 60, deadline=SPEC.deadline, mark="6", marked=NOW - 70),
)  # fmt: skip


def beat(seconds_ago: float, mark: str = "7", **signs: Any) -> Signs:
    return Signs(heartbeat=Heartbeat(at=NOW - seconds_ago, mark=mark), **signs)


def looks(facts: Facts, times: int = 2) -> Decision:
    """One after the other, a minute apart, in which nothing changes."""
    for _ in range(times):
        decision = decide(facts)
        facts = replace(facts, now=facts.now + 60, memory=decision.memory)
    return decision


def test_a_run_that_is_well_is_left_alone() -> None:
    decision = looks(replace(WELL, signs=beat(-100)))
    assert (decision.stop, dict(decision.terminate), decision.is_market_due) == ("", {}, False)


def test_the_budget_stops_early_enough_for_the_next_look_and_the_shutdown() -> None:
    ahead = 1.0 * (rules.TICK_SECONDS + rules.SHUTDOWN_SECONDS) / 3600
    for left, stops in ((ahead * 1.01, False), (ahead * 0.99, True)):
        machine = Machine(id="i-1", type="g6.xlarge", zone="a", market="spot", launched=NOW - 3600, usd_per_hour=1.0)
        facts = replace(WELL, spend=Spend(machines=(machine,)), spec=replace(SPEC, budget_usd=1.0 + left))
        assert bool(decide(facts).stop) == stops


def test_the_budget_counts_a_machine_that_is_to_come_at_the_dearest_price_it_may_have() -> None:
    ended = Machine(
        id="i-1", type="g6.xlarge", zone="a", market="spot", launched=NOW - 3600, ended=NOW, usd_per_hour=1.0
    )
    prices = {"g6.xlarge": 0.8, "g5.xlarge": 1.0, "p5.48xlarge": 55.0}
    spec = replace(SPEC, prices=prices, extras_usd_per_hour=0.2)
    waiting = replace(
        WELL,
        machines=(),
        spend=Spend(at=NOW, machines=(ended,)),
        groups=(replace(GROUP, types=("g6.xlarge", "g5.xlarge")),),
    )
    ahead = 1.2 * (rules.TICK_SECONDS + rules.SHUTDOWN_SECONDS) / 3600
    for left, stops in ((ahead * 1.01, False), (ahead * 0.99, True)):
        assert bool(decide(replace(waiting, spec=replace(spec, budget_usd=1.0 + left))).stop) == stops
    enough = replace(waiting, spec=replace(spec, budget_usd=1.0 + ahead * 0.99), groups=(replace(GROUP, desired=0),))
    assert decide(enough).stop == ""


def test_the_budget_holds_while_ec2_cannot_be_asked() -> None:
    machine = Machine(id="i-1", type="g6.xlarge", zone="a", market="spot", launched=NOW - 3600, usd_per_hour=1.0)
    blind = replace(WELL, machines=None, spend=Spend(at=NOW - 1800, machines=(machine,)))
    assert decide(replace(blind, spec=replace(SPEC, budget_usd=0.95))).stop
    assert decide(replace(blind, spec=replace(SPEC, budget_usd=1.1))).stop == ""


def test_a_machine_costs_its_own_price_and_its_runs_extras() -> None:
    spec = replace(SPEC, extras_usd_per_hour=0.3)
    on_demand = replace(MACHINE, market="on-demand")
    assert price(SpotHistory(None), spec, Spend(), [on_demand]) == {"i-1": Price(0.8 + 0.3, 0.8 + 0.3)}


@pytest.mark.parametrize("extras", ["-0.5", "NaN", '"much"'])
def test_a_spec_whose_extras_are_no_amount_is_no_spec(extras: str) -> None:
    body = SPEC.to_json().replace(b'"extras_usd_per_hour": 0.05', f'"extras_usd_per_hour": {extras}'.encode())
    s3 = SimpleNamespace(
        exceptions=SimpleNamespace(NoSuchKey=KeyError),
        get_object=lambda **_: {"Body": BytesIO(body), "LastModified": datetime.fromtimestamp(NOW, UTC)},
    )
    run = reading.read_run(CautiousBucket(s3, "b"), KnownRun(id="r"))
    assert run.spec is None
    assert "extras_usd_per_hour" in run.spec_problem


def test_the_group_s_deadline_counts_and_not_the_spec_s_or_an_older_machine_s() -> None:
    later = replace(WELL, groups=(replace(GROUP, deadline=NOW + 60),), spec=replace(SPEC, deadline=NOW - 60))
    assert decide(replace(later, machines=(replace(MACHINE, deadline=NOW - 600),))).stop == ""
    assert "deadline" in decide(replace(later, now=NOW + 61)).stop
    assert "deadline" in decide(replace(later, groups=(replace(GROUP, deadline=0.0),))).stop  # no tag: the spec's


def test_the_exit_path_has_two_minutes_before_the_guard_takes_over() -> None:
    assert decide(replace(WELL, signs=Signs(done=NOW - 60))).stop == ""
    assert "finished" in decide(replace(WELL, signs=Signs(done=NOW - 121))).stop
    assert decide(replace(WELL, signs=Signs(failed=NOW - 60))).stop == ""
    assert "no GPU" in decide(replace(WELL, signs=Signs(failed=NOW - 121, failure="no GPU"))).stop


def test_the_machine_of_a_failure_is_kept_as_long_as_the_spec_says_and_within_all_other_guards() -> None:
    kept = replace(WELL, signs=Signs(failed=NOW, failure="no GPU"), spec=replace(SPEC, keep_minutes=30.0))
    ends = NOW + 30 * MINUTE + rules.EXIT_SECONDS
    assert looks(replace(kept, now=NOW + 300), 3).stop == ""
    assert dict(looks(replace(kept, now=NOW + 1200), 3).terminate) == {}  # it is silent, and no hang
    assert decide(replace(kept, now=ends - 1)).stop == ""
    assert "no GPU" in decide(replace(kept, now=ends)).stop
    unknown = replace(kept, now=NOW + 300, machines=None)
    assert decide(unknown).stop == ""  # EC2 does not answer: that is no sign that the machine is gone
    another = replace(MACHINE, id="i-2", launched=NOW + 60)  # it finds the failure, and can only leave
    for gone in ((), (another,), (replace(MACHINE, state="terminated"), another)):
        assert "no GPU" in decide(replace(kept, now=NOW + 300, machines=gone)).stop
    assert "deadline" in decide(replace(kept, groups=(replace(GROUP, deadline=NOW + 10),), now=NOW + 11)).stop
    machine = Machine(id="i-1", type="g6.xlarge", zone="a", market="spot", launched=NOW - 3600, usd_per_hour=9.9)
    assert "budget" in decide(replace(kept, spend=Spend(at=NOW, machines=(machine,)))).stop
    assert decide(replace(kept, now=NOW + 121, spec=SPEC)).stop  # and without KEEP= it goes as before


def test_silence_is_a_hang_only_when_two_looks_in_a_row_find_it() -> None:
    silent = replace(WELL, signs=beat(181))
    assert dict(decide(silent).terminate) == {}
    decision = looks(silent)
    assert list(decision.terminate) == ["i-1"]
    assert (decision.is_hang, decision.memory.hang_kills) == (True, 1)


def test_after_an_outage_of_the_store_the_first_old_heartbeat_is_no_hang() -> None:
    """The suspicion of before the outage is too old to confirm one of after it."""
    before = decide(replace(WELL, signs=beat(181)))
    after = replace(WELL, now=NOW + 3600, signs=beat(181), memory=before.memory)
    assert dict(decide(after).terminate) == {}


@pytest.mark.parametrize(
    "facts",
    [
        replace(WELL, signs=Signs(heartbeat=None)),
        replace(WELL, signs=beat(9999), machines=(replace(MACHINE, launched=NOW - 800),)),
        replace(WELL, signs=beat(9999), machines=None),
        replace(WELL, signs=beat(200, paused=NOW - 100)),
        replace(WELL, signs=beat(-500)),
        replace(WELL, signs=beat(9999), machines=(replace(MACHINE, launched=NOW + 500),)),
    ],
    ids=["heartbeat unreadable", "still booting", "machines unknown", "between two attempts", "clock behind S3's",
         "clock behind EC2's"],
)  # fmt: skip
def test_what_only_looks_like_a_hang_is_left_alone(facts: Facts) -> None:
    assert dict(looks(facts).terminate) == {}


def test_no_first_heartbeat_is_a_hang_once_boot_must_be_over() -> None:
    booting = replace(WELL, signs=Signs(heartbeat=Heartbeat(at=0.0)))
    assert dict(looks(replace(booting, machines=(replace(MACHINE, launched=NOW - 600),))).terminate) == {}
    assert list(looks(replace(booting, machines=(replace(MACHINE, launched=NOW - 900),))).terminate) == ["i-1"]


def test_a_counter_that_stands_still_for_ten_minutes_is_a_hang_by_the_heartbeats_own_times() -> None:
    for seconds, is_hung in ((590, False), (610, True)):
        memory = replace(WELL.memory, mark="7", marked=NOW - 10 - seconds)
        # The looks themselves may be hours apart: the guard may have been away.
        assert bool(looks(replace(WELL, memory=memory)).terminate) == is_hung


def test_a_run_launched_again_has_all_its_hang_restarts() -> None:
    tired = replace(WELL.memory, hang_kills=3, stopped=NOW - 100, reason="hung")
    facts = replace(WELL, signs=beat(181), memory=tired)
    assert "for the 4th time" in looks(facts).stop
    again = replace(facts, groups=(replace(GROUP, deadline=SPEC.deadline + 100),))
    decision = looks(again)
    assert (decision.stop, decision.memory.hang_kills) == ("", 1)


def test_two_machines_at_once_are_no_reason_to_act_while_one_of_them_beats() -> None:
    both = (MACHINE, replace(MACHINE, id="i-2", launched=NOW - 1000))
    assert dict(looks(replace(WELL, machines=both)).terminate) == {}


def test_a_machine_of_an_earlier_run_that_is_shutting_down_is_left_alone_and_one_that_is_not_goes() -> None:
    going = replace(MACHINE, id="i-0", run_id="q", state="shutting-down")
    assert dict(looks(replace(WELL, signs=beat(-500), machines=(MACHINE, going)), 5).terminate) == {}
    staying = replace(going, state="running")
    assert list(looks(replace(WELL, signs=beat(-500), machines=(MACHINE, staying)), 4).terminate) == ["i-0"]


def test_a_machine_that_ec2_leaves_out_of_an_answer_has_no_more_time_to_go() -> None:
    staying = replace(MACHINE, id="i-0", run_id="q")
    facts, answers = replace(WELL, signs=beat(-500)), [(MACHINE, staying), (MACHINE,), (MACHINE,), (MACHINE, staying)]
    for machines in answers:
        decision = decide(replace(facts, machines=machines))
        facts = replace(facts, now=facts.now + 60, memory=decision.memory)
    assert list(decision.terminate) == ["i-0"]
    for _ in range(20):
        facts = replace(facts, now=facts.now + 60, machines=(MACHINE,), memory=decide(facts).memory)
    assert facts.memory.unwanted == {}  # one that is gone is forgotten


def test_machines_whose_spec_cannot_be_read_run_for_the_time_of_a_boot_and_no_longer() -> None:
    blind = replace(WELL, spec=None, unknown_budget="503 Slow Down", machines=(replace(MACHINE, launched=NOW - 800),))
    assert decide(blind).stop == ""
    assert "503 Slow Down" in decide(replace(blind, now=NOW + 200)).stop


def test_a_group_at_rest_is_news_for_a_while_and_then_nothing() -> None:
    at_rest = replace(WELL, groups=(replace(GROUP, desired=0),), machines=(), signs=Signs(done=NOW - 200))
    assert "finished" in decide(at_rest).stop
    later = decide(replace(at_rest, now=NOW + 1000))
    assert later.memory.is_over
    assert decide(replace(at_rest, now=NOW + 1060, memory=later.memory)).stop == ""


def test_on_demand_comes_after_the_stated_wait_and_only_once_and_only_if_stated() -> None:
    waiting = replace(WELL, machines=(), memory=replace(WELL.memory, without_machine=NOW - 20 * MINUTE))
    assert not decide(waiting).is_market_due
    stated = replace(waiting, spec=replace(SPEC, on_demand_after_minutes=20.0))
    assert decide(stated).is_market_due
    assert not decide(replace(stated, groups=(replace(GROUP, market="on-demand"),))).is_market_due
    assert not decide(replace(stated, machines=(MACHINE,))).is_market_due


def test_every_guard_can_be_left_out_and_each_has_a_name_of_its_own() -> None:
    names = [rule.__name__ for rule in (*rules.STOPS, *rules.TERMINATIONS, rules.outside, rules.on_demand_due)]
    assert len(set(names)) == len(names)
    past = replace(WELL, now=SPEC.deadline + 600)
    assert decide(past).stop
    assert decide(past, without=names) == Decision(memory=decide(past).memory)


def test_a_bucket_that_does_not_answer_is_asked_once_a_look_since_there_is_a_minute_for_all() -> None:
    class Silent:
        exceptions = SimpleNamespace(NoSuchKey=KeyError)
        calls = 0

        def get_object(self, **_: str) -> None:
            self.calls += 1
            raise OSError("timed out")

    silent = Silent()
    run = reading.read_run(CautiousBucket(silent, "b"), KnownRun(id="r"))
    assert (run.spec, run.spend, run.memory) == (None, None, None)
    assert len(run.problems) == 3
    assert silent.calls == 1


def test_spot_prices_are_asked_once_for_each_pool_and_not_at_all_after_a_request_without_an_answer() -> None:
    """A machine that hangs in EC2 costs 12 s a request, of the tick's 50. Then list prices count, which are higher."""

    class Told:
        calls = 0
        answers = True

        def describe_spot_price_history(self, **_: object) -> dict[str, list[dict[str, object]]]:
            self.calls += 1
            if not self.answers:
                raise OSError("timed out")
            changes = {NOW - 3000: "0.2", NOW - 90: "0.5", NOW - 30: "0.3"}
            return {"SpotPriceHistory": [
                {"Timestamp": datetime.fromtimestamp(at, UTC), "SpotPrice": usd} for at, usd in changes.items()
            ]}  # fmt: skip

    told, spec = Told(), replace(SPEC, prices={"g6.xlarge": 0.8}, extras_usd_per_hour=0.0)
    known = Machine(id="i-0", type="g6.xlarge", zone="a", market="spot", launched=NOW - 3600)
    in_pools = [replace(MACHINE, id=f"i-{k}", zone="ab"[k // 8], launched=NOW - 20 * (k or 180)) for k in range(16)]
    found = price(SpotHistory(told), spec, Spend(at=NOW - 60, machines=(known,)), in_pools)
    assert told.calls == 2
    assert found["i-0"] == Price(0.3, 0.5)  # since the tally's last look
    assert found["i-1"] == Price(0.3, 0.3)  # since its launch
    assert found["i-4"] == Price(0.3, 0.5)
    told.calls, told.answers = 0, False
    found = price(SpotHistory(told), spec, Spend(), in_pools)
    assert (told.calls, {*found.values()}) == (1, {Price(0.8, 0.8)})


def test_memory_is_what_was_written() -> None:
    memory = Memory(at=1.0, told=("a", "b"), unwanted={"i-1": 2.0}, untold={"e": "m"}, is_over=True)
    assert Memory.from_json(memory.to_json()) == memory
    for broken in (b"", b"[]", b'{"told": 3}'):
        with pytest.raises((ValueError, TypeError, AttributeError)):
            Memory.from_json(broken)
