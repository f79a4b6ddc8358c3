"""Machines and groups as AWS tells them: over HTTP, against the emulator."""

from __future__ import annotations

import time

import pytest

from infra.config import Tag
from infra.operate.planning import offering
from infra.run import fleet
from infra.run.fleet import Group
from tests.infra.fleets import INSTALLATION, RUN, Lab, group_state

GROUP = INSTALLATION.train_group


def test_a_machine_carries_its_run_its_deadline_its_group_and_its_end(lab: Lab) -> None:
    spec = lab.launch()
    (machine,) = lab.machines()
    assert machine.is_billing
    assert (machine.run_id, machine.deadline, machine.group) == (RUN, int(spec.deadline), GROUP)
    assert (machine.type, machine.market, machine.ended, machine.end) == ("g6.xlarge", "spot", 0.0, "")
    assert machine.zone in ("us-east-1a", "us-east-1b")
    assert machine.launched == pytest.approx(time.time(), abs=60)

    fleet.scale_to_zero(lab.client("autoscaling"), GROUP)
    (machine,) = lab.machines(RUN)
    assert not machine.is_billing
    assert machine.ended == pytest.approx(time.time(), abs=60)
    assert machine.end == "Client.UserInitiatedShutdown"
    assert lab.machines("another-run") == []


def test_machines_of_another_installation_are_not_seen(lab: Lab) -> None:
    lab.client("ec2").run_instances(
        ImageId="ami-12345678", MinCount=1, MaxCount=1,
        TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": Tag.INSTALLATION, "Value": "other"}]}],
    )  # fmt: skip
    assert lab.machines() == []


def test_a_group_tells_what_it_is_asked_for_and_none_is_none(lab: Lab) -> None:
    autoscaling = lab.client("autoscaling")
    assert fleet.read_groups(autoscaling, ["nowhere"]) == []
    before = group_state(autoscaling, GROUP)
    assert before == Group(name=GROUP, desired=0, maximum=2, types=("g6.xlarge", "g5.xlarge"))
    spec = lab.launch(nodes=2)
    after = group_state(autoscaling, GROUP)
    assert (after.desired, after.run_id, after.deadline) == (2, RUN, int(spec.deadline))
    assert sorted(after.instance_ids) == sorted(machine.id for machine in lab.machines())


def offer(lab: Lab) -> tuple[str, tuple[str, ...]]:
    state = group_state(lab.client("autoscaling"), GROUP)
    return state.market, state.types


def test_market_and_types_change_and_leave_the_rest(lab: Lab) -> None:
    autoscaling = lab.client("autoscaling")
    offering.offer(autoscaling, GROUP, "on-demand", ["g6e.xlarge", "g5.2xlarge"], 2)
    assert offer(lab) == ("on-demand", ("g6e.xlarge", "g5.2xlarge"))
    fleet.scale(autoscaling, GROUP, 1)
    (machine,) = lab.machines()
    assert (machine.type, machine.market) == ("g6e.xlarge", "on-demand")
    offering.offer(autoscaling, GROUP, "spot", ["g5.xlarge"], 2)
    assert offer(lab) == ("spot", ("g5.xlarge",))


def test_a_group_that_was_suspended_says_so_and_goes_on_with_the_next_launch(lab: Lab) -> None:
    """As AWS does with a group that found no machine for a day. It then tries nothing, and tells nothing new."""
    autoscaling = lab.client("autoscaling")
    autoscaling.suspend_processes(AutoScalingGroupName=GROUP)
    lab.launch()
    assert lab.billing() == []
    state = group_state(autoscaling, GROUP)
    assert state.suspended
    (refusal,) = fleet.why_no_machine(autoscaling, state)
    assert "suspended" in refusal.reason
    assert f"`aws autoscaling resume-processes --auto-scaling-group-name {GROUP}`" in refusal.fix
    offering.offer(autoscaling, GROUP, "spot", ["g6.xlarge"], 1)
    assert not group_state(autoscaling, GROUP).suspended
    assert len(lab.billing()) == 1


def test_a_group_that_is_not_suspended_is_not_resumed(lab: Lab) -> None:
    """So whoever may not do so can launch all the same."""
    lab.aws.clear_calls()
    offering.offer(lab.client("autoscaling"), GROUP, "spot", ["g6.xlarge"], 1)
    assert "autoscaling.ResumeProcesses" not in lab.aws.calls()


def test_the_group_of_a_run_is_the_one_that_is_asked_for_machines() -> None:
    idle, wanted = Group(name="a", desired=0, maximum=1, run_id="r"), Group(name="b", desired=1, maximum=1, run_id="r")
    other = Group(name="c", desired=1, maximum=1, run_id="s")
    assert fleet.wanted_group([idle, other, wanted], "r") == wanted
    assert fleet.wanted_group([other, idle], "r") == idle
    assert fleet.wanted_group([other], "r") is None


def test_a_group_never_has_more_machines_than_its_run_asked_for(lab: Lab) -> None:
    autoscaling = lab.client("autoscaling")
    offering.offer(autoscaling, GROUP, "spot", ["g6.xlarge"], 1)
    fleet.scale(autoscaling, GROUP, 1)
    with pytest.raises(autoscaling.exceptions.ClientError, match=r"must be between .* max size:1"):
        fleet.scale(autoscaling, GROUP, 2)  # as a machine may try with its role
    assert len(lab.billing()) == 1
    fleet.scale_to_zero(autoscaling, GROUP)
    offering.offer(autoscaling, GROUP, "spot", ["g6.xlarge"], 2)
    fleet.scale(autoscaling, GROUP, 2)
    assert len(lab.billing()) == 2


def test_a_group_whose_minimum_was_raised_by_hand_still_goes_to_0(lab: Lab) -> None:
    autoscaling = lab.client("autoscaling")
    autoscaling.update_auto_scaling_group(AutoScalingGroupName=GROUP, MinSize=1, DesiredCapacity=1)
    fleet.scale_to_zero(autoscaling, GROUP)
    assert lab.desired() == 0
    assert lab.billing() == []


@pytest.mark.parametrize(
    ("message", "reason", "fix"),
    [
        ("Could not launch Spot Instances. MaxSpotInstanceCountExceeded - Max spot instance count exceeded.",
         "quota", "make preflight"),
        ("You have requested more vCPU capacity than your current vCPU limit of 0 allows for the instance bucket",
         "quota", "make preflight"),
        ("Could not launch Spot Instances. AuthFailure.ServiceLinkedRoleCreationNotPermitted - The provided "
         "credentials do not have permission to create the service-linked role for EC2 Spot Instances.",
         "service-linked role", "aws iam create-service-linked-role --aws-service-name spot.amazonaws.com"),
        ("Could not launch Spot Instances. UnfulfillableCapacity - Unable to fulfill capacity due to your request "
         "configuration.", "or never has these types in these zones", "other types or zones"),
        ("Client.InternalError: Client error on launch", "default key for disks", "make preflight"),
        ("Client.InvalidKMSKey.InvalidState: The KMS key provided is in an incorrect state", "default key for disks",
         "make preflight"),
        ("We currently do not have sufficient g5.xlarge capacity in the Availability Zone you requested (us-east-1a).",
         "no such machine free", "more types or zones"),
        ("The image id '[ami-1234]' does not exist", "machine image", "make deploy"),
        ("Something of the g5 family that no one has seen", "Something of the g5 family that no one has seen", ""),
    ],
)  # fmt: skip
def test_a_refused_machine_tells_why_and_what_to_do(lab: Lab, message: str, reason: str, fix: str) -> None:
    lab.aws.set(launch_failures={GROUP: message})
    lab.launch()
    autoscaling = lab.client("autoscaling")
    (refusal,) = fleet.why_no_machine(autoscaling, group_state(autoscaling, GROUP))
    assert reason in refusal.reason
    assert message in refusal.reason  # AWS's own words are never lost
    assert fix in refusal.fix
    assert bool(refusal.fix) == bool(fix)
    assert fleet.why_no_machine(autoscaling, group_state(autoscaling, GROUP), since=time.time() + 60) == []

    lab.aws.set(launch_failures={GROUP: ""})
    assert group_state(autoscaling, GROUP)  # the group tries again
    assert lab.billing()
    assert fleet.why_no_machine(autoscaling, group_state(autoscaling, GROUP)) == []
