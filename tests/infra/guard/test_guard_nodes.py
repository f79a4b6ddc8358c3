"""A run of several machines: which of them the guard replaces alone, and when the run goes on without them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from infra.guard import rules
from infra.guard.facts import Facts, Heartbeat, NodeSign, Signs
from infra.guard.memory import Memory
from infra.guard.nodes import APART_SECONDS, LATELY_SECONDS
from infra.guard.notices import time_lost
from infra.guard.rules import decide
from infra.run.fleet import FleetMachine, Group
from infra.run.spec import Spec
from infra.run.spend import Machine, Spend

NOW = 1_800_000_000.0
SPEC = Spec(
    run_id="r", budget_usd=10.0, hours=10, created=NOW, deadline=NOW + 36000, prices={"g6.xlarge": 0.8}, nodes=4
)
GROUP = Group(name="g", desired=4, maximum=4, run_id="r", deadline=SPEC.deadline)
OFF, ENDED = "Client.InstanceInitiatedShutdown", "Client.UserInitiatedShutdown"
TEAM = tuple(
    FleetMachine(
        id=f"i-{k}", type="g6.xlarge", zone="a", market="spot", state="running", launched=NOW - 3600, run_id="r",
        group="g",
    )
    for k in range(4)
)  # fmt: skip
FRESH = NodeSign(at=NOW - 10, attempt=2, phase="training")


def tallied(machine: FleetMachine) -> Machine:
    return Machine(
        id=machine.id, type="g6.xlarge", zone="a", market="spot", launched=machine.launched, deadline=SPEC.deadline
    )


def dead(number: int, end: str = OFF) -> Machine:
    launched = NOW - 3000 + 300 * number
    return replace(tallied(TEAM[0]), id=f"i-dead-{number}", launched=launched, ended=launched + 90, end=end)


def facts(
    nodes: int = 4, signs: dict[str, NodeSign] | None = None, died: int = 0, machines: tuple[FleetMachine, ...] = TEAM,
    **memory: Any,
) -> Facts:  # fmt: skip
    """A minute of attempt 2, which `nodes` machines are in; the memory is of the minute before."""
    spend = Spend(at=NOW, machines=(*map(tallied, machines), *map(dead, range(died))))
    beat = Heartbeat(at=NOW - 10, mark="7", attempt=2, phase="training", nodes=nodes)
    return Facts(
        now=NOW, groups=(GROUP,), machines=machines, spec=SPEC, spend=spend,
        signs=Signs(heartbeat=beat, nodes=dict.fromkeys((m.id for m in TEAM), FRESH) if signs is None else signs),
        memory=Memory(at=NOW - 60, active=NOW - 60, deadline=SPEC.deadline, mark="6", marked=NOW - 70, **memory),
    )  # fmt: skip


def with_last(sign: NodeSign | None) -> dict[str, NodeSign]:
    others = dict.fromkeys((machine.id for machine in TEAM[:3]), FRESH)
    return others | ({"i-3": sign} if sign else {})


LATE = {"i-3": NOW - APART_SECONDS}
LATELY = (NOW - 3600, NOW - 2400, NOW - 1200)  # when three machines were replaced


@pytest.mark.parametrize(
    ("sign", "why"),
    [
        (None, "it has never written its record"),
        (replace(FRESH, at=NOW - 700), "its record is 12 minutes old"),
        (replace(FRESH, phase=""), "its record names no phase, so it waits to be taken in, attempt 2"),
        (replace(FRESH, attempt=1, phase="starting"), "its record says starting, attempt 1"),
    ],
    ids=["no record", "an old record", "it waits", "it starts for ever"],
)
def test_a_machine_that_bills_and_does_not_train_with_the_others_is_terminated_alone(
    sign: NodeSign | None, why: str
) -> None:
    decision = decide(facts(3, with_last(sign), apart=LATE))
    assert [*decision.terminate] == ["i-3"]
    assert why in decision.terminate["i-3"]
    assert (decision.stop, decision.is_hang, decision.nodes, decision.memory.replaced) == ("", False, 0, (NOW,))
    assert decide(facts(3, with_last(sign), apart=LATE), without=["apart"]).terminate == {}


@pytest.mark.parametrize(
    "known",
    [
        facts(4, with_last(None), apart=LATE),
        facts(3, with_last(FRESH), apart=LATE),
        facts(3, with_last(replace(FRESH, attempt=1, phase="staging")), apart=LATE),
        facts(3, with_last(None), apart={"i-3": NOW - APART_SECONDS + 1}),
        facts(3, with_last(None)),
        replace(facts(3, apart=LATE), signs=Signs(heartbeat=Heartbeat(at=NOW - 10, nodes=3), nodes=None)),
        replace(facts(3, apart=LATE), signs=Signs(heartbeat=None, nodes=with_last(None))),
        facts(3, with_last(None), machines=(*TEAM[:3], replace(TEAM[3], launched=NOW - 890)), apart=LATE),
        replace(facts(3, with_last(None), apart=LATE), now=NOW + 120),
    ],
    ids=["the heartbeat has all four", "its record is of the attempt", "it fetches its data", "for under 10 minutes",
         "seen for the first time", "records unreadable", "heartbeat unreadable", "it boots", "no tick for 3 minutes"],
)  # fmt: skip
def test_a_machine_that_may_still_join_is_left_alone(known: Facts) -> None:
    decision = decide(known)
    assert (decision.stop, dict(decision.terminate), decision.nodes) == ("", {}, 0)


@pytest.mark.parametrize("overlooked", ["i-0", "i-3"])
def test_a_machine_that_ec2_leaves_out_of_one_answer_is_counted_on(overlooked: str) -> None:
    """Whichever it is: the three that train, or the one that does not, since 8 minutes."""
    known = facts(3, with_last(None), apart={"i-3": NOW - 480})
    seen = tuple(machine for machine in TEAM if machine.id != overlooked)
    after = decide(replace(known, machines=seen)).memory
    assert after.apart == {"i-3": NOW - 480}
    later = replace(known, now=NOW + 120, memory=replace(after, at=NOW + 60))
    beat = replace(known.signs.heartbeat or Heartbeat(at=0.0), at=NOW + 110)
    signs = {id: replace(sign, at=NOW + 110) for id, sign in with_last(None).items()}
    assert [*decide(replace(later, signs=Signs(heartbeat=beat, nodes=signs))).terminate] == ["i-3"]


def test_after_an_outage_of_the_guard_a_machine_that_was_apart_has_three_more_minutes() -> None:
    known = facts(3, with_last(None), apart={"i-3": NOW - 3000})
    away = replace(known, memory=replace(known.memory, at=NOW - 2000))
    decision = decide(away)
    assert (dict(decision.terminate), decision.memory.apart) == ({}, {"i-3": NOW - APART_SECONDS + 180})


def test_after_three_replacements_the_run_goes_on_without_the_machine_that_never_trains() -> None:
    decision = decide(facts(3, with_last(None), apart=LATE, replaced=LATELY))
    assert (decision.nodes, decision.leaving, dict(decision.terminate)) == (3, ("i-3",), {})
    assert "as were 3 machines that were replaced in the last 2 hours" in decision.why_fewer
    assert decide(facts(4, replaced=LATELY)).memory.replaced == ()
    assert Memory.from_json(facts(replaced=LATELY).memory.to_json()).replaced == LATELY


@pytest.mark.parametrize(
    "replaced",
    [LATELY[1:], (NOW - LATELY_SECONDS, *LATELY[1:])],
    ids=["two were replaced", "the first of three was replaced two hours ago"],
)
def test_fewer_replacements_or_old_ones_do_not_cost_the_run_a_machine(replaced: tuple[float, ...]) -> None:
    decision = decide(facts(3, with_last(None), apart=LATE, replaced=replaced))
    assert (decision.nodes, [*decision.terminate]) == (0, ["i-3"])


def test_a_run_that_goes_on_without_a_machine_keeps_those_that_boot() -> None:
    """Of two that are missing one has come a second ago. With it, twice as many replacements count."""
    young = (*TEAM[:2], replace(TEAM[2], launched=NOW - 1), TEAM[3])
    signs = dict.fromkeys(("i-0", "i-1"), FRESH)
    few = decide(facts(2, signs, machines=young, apart=LATE, replaced=LATELY))
    assert (few.nodes, [*few.terminate], few.memory.apart) == (0, ["i-3"], LATE | {"i-2": NOW})
    decision = decide(facts(2, signs, machines=young, apart=LATE, replaced=2 * LATELY))
    assert (decision.nodes, decision.leaving, dict(decision.terminate)) == (3, ("i-3",), {})


@pytest.mark.parametrize(
    ("known", "nodes"),
    [
        (facts(3, with_last(None), died=4), 3),
        (facts(3, with_last(None), died=3), 0),
        (facts(3, with_last(FRESH), died=4), 0),
        (facts(2, {"i-0": FRESH, "i-1": FRESH}, died=7), 0),
        (facts(2, {"i-0": FRESH, "i-1": FRESH}, died=8), 2),
        (facts(3, with_last(None) | {"i-dead-0": FRESH}, died=5), 3),
        (facts(3, with_last(None) | {"i-dead-1": FRESH}, died=5), 0),
        (facts(3, with_last(None), died=4, shrunk=NOW - 2999), 0),
        (replace(facts(3, died=4), signs=Signs(heartbeat=Heartbeat(at=NOW - 10, nodes=3), nodes=None)), 0),
    ],
    ids=["four", "three", "all four live", "seven for two machines", "eight for two machines", "one gave a sign before",
         "one gave a sign in between", "before the run was shrunk", "records unreadable"],
)  # fmt: skip
def test_a_run_goes_on_with_the_machines_that_live_where_the_others_die_young(known: Facts, nodes: int) -> None:
    decision = decide(known)
    assert (decision.stop, decision.nodes) == ("", nodes)
    if nodes:
        assert {*decision.leaving} == {machine.id for machine in TEAM} - {*(known.signs.nodes or {})}
        assert "machines ended without a heartbeat" in decision.why_fewer


def test_where_no_machine_lives_the_run_stops_after_four_deaths_for_each_that_it_wants() -> None:
    for count, stops in ((15, False), (16, True)):
        known = facts(0, {}, died=count, machines=())
        known = replace(known, signs=Signs(heartbeat=Heartbeat(at=0.0), nodes={}))
        assert ("machines ended without a heartbeat" in decide(known).stop) == stops


def test_a_hung_run_loses_all_its_machines_and_counts_once() -> None:
    known = facts(4, suspected=NOW - 60)
    silent = replace(known.signs.heartbeat or Heartbeat(at=0.0), at=NOW - 300)
    decision = decide(replace(known, signs=replace(known.signs, heartbeat=silent)))
    assert [*decision.terminate] == [machine.id for machine in TEAM]
    assert decision.memory.hang_kills == 1


def test_the_budget_counts_all_machines_that_bill_and_those_that_are_missing() -> None:
    """Four machines at a dollar an hour, or two and two to come: the same money is ahead."""
    ahead = 4 * (0.8 + SPEC.extras_usd_per_hour) * (rules.TICK_SECONDS + rules.SHUTDOWN_SECONDS) / 3600
    for there in (4, 2):
        open = tuple(replace(tallied(one), launched=NOW, usd_per_hour=0.85) for one in TEAM[:there])
        known = replace(facts(machines=TEAM[:there]), spend=Spend(at=NOW, machines=open))
        least = known.spend.usd_at_most(NOW)
        for left, stops in ((ahead * 1.001, False), (ahead * 0.999, True)):
            assert bool(decide(replace(known, spec=replace(SPEC, budget_usd=least + left))).stop) == stops


def test_machines_that_bill_while_no_attempt_works_are_told_once_an_hour() -> None:
    """The first start is no loss. Of an hour, thirteen minutes are more than a fifth."""
    known, memory, told = facts(), Memory(), list[str]()
    phases = ["starting"] * 20 + ["training"] * 10 + ["starting", "training"] * 30
    for minute, phase in enumerate(phases):
        beat = replace(known.signs.heartbeat or Heartbeat(at=0.0), phase=phase, at=NOW + 60 * minute - 10)
        lines, memory = time_lost(replace(known, now=NOW + 60 * minute, signs=Signs(heartbeat=beat)), memory)
        told += [f"{minute}: {line}" for line in lines]
    assert len(told) == 1
    assert told[0].startswith("54: 22 % of the last hour were lost between attempts")
    assert "attempt is 2" in told[0]
    silent = Signs(heartbeat=Heartbeat(at=NOW, phase="training"))
    _, after = time_lost(replace(known, now=NOW + 9000, signs=silent), memory)
    assert after.lost == (NOW + 9000,)
    assert Memory.from_json(after.to_json()).lost == after.lost
    assert json.loads(after.to_json())["lost_told"] == memory.lost_told
