"""Which machines the guard takes away or replaces: those that hang, that nobody wants, that are outside the groups; and
when it changes from spot to on-demand."""

from __future__ import annotations

import pytest

from infra.config import Tag
from infra.guard.memory import MOST_ENDS
from infra.run import fleet
from infra.run.values import MOST_BYTES
from tests.infra.fleets import INSTALLATION, RUN, Lab, only
from trainer.contract import run_key

GROUP, OTHER = INSTALLATION.groups_of("train")


def test_a_hung_machine_is_replaced_three_times_and_then_the_run_stops(lab: Lab) -> None:
    lab.launch()
    lab.beat()
    lab.commit(100)
    minute, all_machines = 16.0, lab.billing()
    for kill in range(1, 4):
        (machine,) = lab.billing()
        lab.tick(minute)  # looks hung
        assert lab.billing() == [machine]
        lab.tick(minute + 1)  # and still does
        (replacement,) = lab.billing()
        assert replacement != machine
        assert lab.memory().hang_kills == kill
        all_machines.append(replacement)
        minute += 2
    lab.tick(minute)
    lab.tick(minute + 1)
    assert lab.desired() == 0
    assert lab.billing() == []
    assert "no heartbeat" in lab.memory().reason
    assert len([message for message in lab.mail() if "no heartbeat" in message]) == 4
    ends = lab.memory().ends  # for `make logs`
    assert [*ends] == all_machines
    assert all("no heartbeat" in reason for reason in ends.values())
    assert "4th time" in [*ends.values()][-1]
    assert lab.memory().for_launch(lab.memory().deadline + 1).ends == ends
    assert [*lab.memory().with_ends({all_machines[0]: "later"} | dict.fromkeys("ab", "why")).ends][-2:] == ["a", "b"]
    assert lab.memory().with_ends({all_machines[0]: "later"}).ends == ends
    many = lab.memory().with_ends({str(n): 9999 * "\0" for n in range(200)})
    assert len(many.ends) == MOST_ENDS
    assert len(many.to_json()) < MOST_BYTES / 4


def test_a_newer_checkpoint_gives_a_hanging_run_three_more_machines(lab: Lab) -> None:
    lab.launch()
    lab.beat()
    minute = 16.0
    for step in range(5):
        lab.commit(step)
        lab.tick(minute)
        lab.tick(minute + 1)
        assert lab.memory().hang_kills == 1
        minute += 2
    assert lab.desired() == 1


def test_a_machine_that_its_group_does_not_let_go_is_terminated(lab: Lab) -> None:
    """Scale-in protection and a suspended process keep a machine: EC2 itself still takes it away."""
    lab.launch()
    lab.beat()
    (machine,) = lab.billing()
    autoscaling = lab.client("autoscaling")
    autoscaling.set_instance_protection(AutoScalingGroupName=GROUP, InstanceIds=[machine], ProtectedFromScaleIn=True)
    fleet.scale_to_zero(autoscaling, GROUP)
    guard = lab.guard(without=only("unwanted"))
    for minute in (1, 2, 3):
        guard.tick(lab.began + minute * 60)
        assert lab.billing() == [machine]
    guard.tick(lab.began + 5 * 60)
    assert machine not in lab.billing()


def test_a_machine_past_the_deadline_is_terminated_in_any_case(lab: Lab) -> None:
    lab.launch()
    lab.guard(without=only("overdue")).tick(lab.began + 602.5 * 60)
    gone = [machine for machine in lab.machines() if not machine.is_billing]
    assert len(gone) == 1


def test_a_machine_of_an_earlier_run_goes_and_is_billed_to_that_run(lab: Lab) -> None:
    lab.launch(run_id="run-0")
    (old,) = lab.billing()
    lab.launch(nodes=2)
    guard = lab.guard(without=only("unwanted"))
    for minute in (0, 1, 2, 3):
        guard.tick(lab.began + minute * 60)
    assert old not in lab.billing()
    guard.tick(lab.began + 240)
    assert [machine.id for machine in lab.spend("run-0").machines] == [old]
    assert lab.spend("run-0").machines[0].ended
    assert old not in [machine.id for machine in lab.spend().machines]
    assert len(lab.billing()) == 2


def test_a_group_that_was_asked_for_more_machines_than_its_run_shrinks_for_good(lab: Lab) -> None:
    lab.launch()
    autoscaling = lab.client("autoscaling")
    autoscaling.update_auto_scaling_group(AutoScalingGroupName=GROUP, MaxSize=5, DesiredCapacity=3)
    assert len(lab.billing()) == 3
    lab.guard(without=only("too_many")).tick(lab.began + 60)
    assert lab.desired() == 1
    assert len(lab.billing()) == 1
    with pytest.raises(autoscaling.exceptions.ClientError, match="max size:1"):
        fleet.scale(autoscaling, GROUP, 2)
    assert f"3 machines were asked of {GROUP}, and 1 for the run" in "".join(lab.mail())


def test_a_run_on_spot_alone_cannot_be_moved_to_the_on_demand_group(lab: Lab) -> None:
    """A machine may set the size of both groups. Only the run's spec says that it may become dearer."""
    lab.launch()
    fleet.scale(lab.client("autoscaling"), OTHER, 1)
    lab.guard(without=only("too_many")).tick(lab.began + 60)
    assert (lab.desired(GROUP), lab.desired(OTHER)) == (1, 0)
    assert f"2 machines were asked of {GROUP} and {OTHER}, and 1 for the run" in "".join(lab.mail())


def test_a_run_of_several_machines_keeps_them(lab: Lab) -> None:
    lab.launch(nodes=2)
    lab.tick(1)
    assert lab.desired() == 2


def test_a_machine_outside_the_groups_is_terminated_once_it_cannot_be_a_new_one(lab: Lab) -> None:
    lab.client("ec2").run_instances(
        ImageId="ami-12345678", MinCount=1, MaxCount=1,
        TagSpecifications=[
            {"ResourceType": "instance", "Tags": [{"Key": Tag.INSTALLATION, "Value": INSTALLATION.name}]}
        ],
    )  # fmt: skip
    guard = lab.guard(without=only("outside"))
    guard.tick(lab.began + 60)
    assert len(lab.billing()) == 1
    guard.tick(lab.began + 16 * 60)
    assert lab.billing() == []
    assert any("outside its groups" in message for message in lab.mail())


def test_without_any_spot_machine_it_changes_to_on_demand_after_the_stated_wait(lab: Lab) -> None:
    lab.aws.set(launch_failures={GROUP: "UnfulfillableCapacity - Unable to fulfill capacity"})
    lab.launch(on_demand_after_minutes=10.0)
    for minute in (0, 9):
        lab.tick(minute)
        assert (lab.desired(GROUP), lab.desired(OTHER)) == (1, 0)
    lab.tick(10)
    assert (lab.desired(GROUP), lab.desired(OTHER)) == (0, 1)
    (machine,) = (machine for machine in lab.machines() if machine.is_billing)
    assert (machine.market, machine.group, machine.run_id) == ("on-demand", OTHER, RUN)
    (message,) = lab.mail()
    assert "no such machine free" in message
    lab.beat()
    lab.tick(11)  # it is the run's machine as any other
    assert [one.id for one in lab.spend().machines] == [machine.id]
    assert lab.desired(OTHER) == 1
    lab.put(run_key(RUN, "done.json"), {"attempt": 1})
    lab.tick(14)
    assert lab.desired(OTHER) == 0
    assert lab.billing() == []
    lab.tick(15)
    assert lab.schedules() == []


def test_a_change_that_fails_in_between_leaves_the_run_with_a_machine_and_is_finished_later(lab: Lab) -> None:
    """Two calls change the group. The run must never be in no group, and not for long in two."""
    lab.aws.set(launch_failures={GROUP: "UnfulfillableCapacity - Unable to fulfill capacity"})
    lab.launch(on_demand_after_minutes=10.0)
    lab.tick(0)
    autoscaling = lab.client("autoscaling")
    autoscaling.update_auto_scaling_group(AutoScalingGroupName=OTHER, MaxSize=0)
    assert "max size:0" in "".join(lab.tick(10))
    assert (lab.desired(GROUP), lab.desired(OTHER)) == (1, 0)  # the new group refuses: the run stays in the old one
    autoscaling.update_auto_scaling_group(AutoScalingGroupName=OTHER, MaxSize=1)
    fleet.scale(autoscaling, OTHER, 1)  # as if the old group had refused to let go
    lab.tick(11)
    assert (lab.desired(GROUP), lab.desired(OTHER)) == (0, 1)


def test_a_run_whose_launch_did_not_name_the_on_demand_group_says_how_to_change_by_hand(lab: Lab) -> None:
    """As one that was launched before there was such a group."""
    lab.aws.set(launch_failures={GROUP: "UnfulfillableCapacity - Unable to fulfill capacity"})
    spec = lab.launch(on_demand_after_minutes=10.0)
    fleet.assign(lab.client("autoscaling"), [OTHER], "another", spec.deadline)
    for minute in (0, 10, 11):
        lab.tick(minute)
    assert (lab.desired(GROUP), lab.desired(OTHER)) == (1, 0)
    (message,) = lab.mail()
    assert f"`make stop`, then `make launch RUN={RUN} MARKET=on-demand`" in message


def test_a_machine_of_the_group_that_the_run_has_left_is_unwanted(lab: Lab) -> None:
    """A spot machine that comes in the same moment, and that its group does not let go."""
    lab.launch()
    autoscaling = lab.client("autoscaling")
    (spot,) = lab.billing()
    autoscaling.set_instance_protection(AutoScalingGroupName=GROUP, InstanceIds=[spot], ProtectedFromScaleIn=True)
    fleet.scale(autoscaling, OTHER, 1)
    fleet.scale_to_zero(autoscaling, GROUP)
    guard = lab.guard(without=only("unwanted"))
    for minute in (1, 2, 3):
        guard.tick(lab.began + minute * 60)
    assert len(lab.billing()) == 2
    guard.tick(lab.began + 5 * 60)
    left = [machine for machine in lab.machines() if machine.is_billing]
    assert spot not in [machine.id for machine in left]
    assert OTHER in [machine.group for machine in left]


def test_why_no_machine_came_is_not_told_by_an_earlier_launch(lab: Lab) -> None:
    lab.aws.set(launch_failures={GROUP: "UnfulfillableCapacity - Unable to fulfill capacity"})
    lab.launch(on_demand_after_minutes=10.0, deadline=lab.began + 3600 + 36000)  # an hour after those failures
    for minute in (60, 70):
        lab.tick(minute)
    (message,) = lab.mail()
    assert message.endswith("from now on on-demand machines.")
