"""Machines that end before they have ever given a heartbeat: the fourth in a row is the last."""

from __future__ import annotations

from dataclasses import replace

import pytest

from infra.guard.deaths import young_deaths
from infra.guard.facts import Facts, Heartbeat, Signs
from infra.guard.rules import decide
from infra.run.fleet import Group
from infra.run.spec import Spec
from infra.run.spend import Machine, Spend
from tests.infra.fleets import INSTALLATION, Lab, group_state, only

NOW = 1_800_000_000.0
SPEC = Spec(run_id="r", budget_usd=10.0, hours=10, created=NOW, deadline=NOW + 36000, prices={"g6.xlarge": 0.8})
GROUP = Group(name="g", desired=1, maximum=1, run_id="r", deadline=SPEC.deadline)
OFF, RECLAIMED = "Client.InstanceInitiatedShutdown", "Server.SpotInstanceTermination"
DIED = [
    Machine(
        id=f"i-{k}", type="g6.xlarge", zone="a", market="spot", launched=NOW - 3600 + 600 * k,
        ended=NOW - 3600 + 600 * k + 75 + k, end=OFF, deadline=SPEC.deadline,
    )
    for k in range(4)
]  # fmt: skip
NEVER = Signs(heartbeat=Heartbeat(at=0.0))


def facts(*machines: Machine, signs: Signs = NEVER, group: Group = GROUP) -> Facts:
    return Facts(now=NOW, groups=(group,), spec=SPEC, spend=Spend(at=NOW, machines=machines), signs=signs)


def die(lab: Lab, minute: float) -> None:
    (machine,) = lab.billing()
    lab.client("ec2").terminate_instances(InstanceIds=[machine])
    lab.tick(minute)


def test_the_fourth_machine_that_ends_without_a_heartbeat_stops_the_run_and_says_what_they_have_in_common(
    lab: Lab,
) -> None:
    lab.launch()
    lab.aws.set(end_reason=OFF)
    for minute in (3, 6, 9):
        die(lab, minute)
        assert lab.desired() == 1
    die(lab, 12)
    assert lab.desired() == 0
    assert lab.billing() == []
    reason = lab.memory().reason
    assert "4 machines ended without a heartbeat" in reason
    assert OFF in reason
    assert "make logs RUN=run-1" in reason
    assert "get-console-output" in reason
    assert sum("4 machines ended without a heartbeat" in message for message in lab.mail()) == 1


def test_without_the_rule_machine_follows_machine(lab: Lab) -> None:
    """What AWS, the group and the other rules do where nothing but this rule is missing."""
    lab.launch()
    lab.aws.set(end_reason=OFF)
    guard = lab.guard(without=["died_young"])
    for minute in range(6):
        lab.client("ec2").terminate_instances(InstanceIds=lab.billing())
        guard.tick(lab.began + 3 * 60 * minute)
    assert lab.desired() == 1
    assert len(lab.billing()) == 1


def test_machines_that_spot_took_back_young_are_replaced_as_often_as_it_takes(lab: Lab) -> None:
    lab.launch()
    lab.aws.set(end_reason=RECLAIMED)
    for minute in range(3, 21, 3):
        die(lab, minute)
    assert lab.desired() == 1
    assert len(lab.billing()) == 1
    assert {machine.end for machine in lab.spend().machines if machine.ended} == {RECLAIMED}


def test_the_run_stops_also_while_its_group_gets_no_fifth_machine(lab: Lab) -> None:
    """No machine bills then, and the heartbeat is read all the same."""
    lab.launch()
    lab.aws.set(end_reason=OFF)
    for minute in (3, 6, 9):
        die(lab, minute)
    lab.aws.set(launch_failures={INSTALLATION.train_group: "UnfulfillableCapacity - Unable to fulfill capacity"})
    lab.client("ec2").terminate_instances(InstanceIds=lab.billing())
    assert lab.billing() == []
    lab.guard(without=only("died_young")).tick(lab.began + 12 * 60)
    assert lab.desired() == 0


def test_a_relaunched_run_has_four_machines_again(lab: Lab) -> None:
    spec = lab.launch()
    lab.aws.set(end_reason=OFF)
    for minute in (3, 6, 9, 12):
        die(lab, minute)
    assert lab.desired() == 0
    lab.tick(13)  # deletes the schedule
    lab.launch(deadline=spec.deadline + 100)
    for minute in (15, 18, 21):
        die(lab, minute)
        assert lab.desired() == 1
    die(lab, 24)
    assert lab.desired() == 0


def test_the_reason_names_how_long_they_lived_and_the_newest_of_them() -> None:
    reason = decide(facts(*DIED)).stop
    assert "after 1.2 to 1.3 minutes" in reason
    assert "they powered off" in reason
    assert "--instance-id i-3" in reason
    kms = [replace(machine, end="Client.InternalError") for machine in DIED]
    assert "KMS key" in decide(facts(*kms)).stop
    new = [replace(machine, end="Client.VolumeLimitExceeded") for machine in DIED]
    assert "(Client.VolumeLimitExceeded)" in decide(facts(*new)).stop


@pytest.mark.parametrize(
    ("known", "stops"),
    [
        (facts(*DIED), True),
        (facts(*DIED[:3]), False),
        (facts(*DIED, signs=Signs(heartbeat=None)), False),
        (facts(*DIED, signs=Signs(heartbeat=Heartbeat(at=DIED[0].launched - 1))), True),
        (facts(*DIED, signs=Signs(heartbeat=Heartbeat(at=DIED[0].launched + 60))), False),
        (facts(*DIED[1:], replace(DIED[0], end="")), False),
        (facts(*DIED[1:], replace(DIED[0], end="Server.SpotInstanceShutdown")), False),
        (facts(*DIED[1:], replace(DIED[0], end="Server.InsufficientInstanceCapacity")), False),
        (facts(*DIED, replace(DIED[0], id="i-4", end=RECLAIMED)), True),
        (facts(*DIED[1:], replace(DIED[0], ended=0.0, end="")), False),
        (facts(*DIED, group=replace(GROUP, deadline=SPEC.deadline + 60)), False),
    ],
    ids=["four", "three", "heartbeat unreadable", "a heartbeat of an earlier machine", "the first one gave a heartbeat",
         "why is unknown", "stopped by spot", "never had capacity", "a reclaim among them", "the fourth still bills",
         "of an earlier launch"],
)  # fmt: skip
def test_what_counts_as_a_young_death(known: Facts, *, stops: bool) -> None:
    assert ("without a heartbeat" in decide(known).stop) == stops


def test_a_death_is_remembered_when_ec2_has_forgotten_the_machine() -> None:
    """Four short lives may be hours apart where capacity is rare."""
    spend = Spend()
    for machine in DIED:
        seen = replace(machine, ended=0.0, end="")
        spend = spend.tally([seen], machine.launched, {}).tally([machine], machine.ended + 60, {})
    spend = Spend.from_json(spend.tally([], NOW + 7200, {}).to_json())
    assert [machine.end for machine in young_deaths(spend, SPEC.deadline, 0.0)] == [OFF] * 4


def test_the_state_of_a_group_has_the_deadline_that_its_machines_were_given(lab: Lab) -> None:
    """Both are the same tag, so a death can be told from one of an earlier launch."""
    lab.launch(deadline=lab.began + 1234.5)
    state = group_state(lab.client("autoscaling"), INSTALLATION.train_group)
    assert [machine.deadline for machine in lab.machines()] == [state.deadline]
