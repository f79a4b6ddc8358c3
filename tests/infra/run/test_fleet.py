"""Machines and groups as AWS tells them: over HTTP, against the emulator."""

from __future__ import annotations

import time

import pytest

from infra.config import Tag
from infra.run import fleet
from infra.run.fleet import Group
from tests.infra.fleets import INSTALLATION, RUN, Lab

GROUP = INSTALLATION.train_group


def test_a_machine_carries_its_run_its_deadline_its_group_and_its_end(lab: Lab) -> None:
    spec = lab.launch()
    (machine,) = lab.machines()
    assert machine.is_billing
    assert (machine.run_id, machine.deadline, machine.group) == (RUN, int(spec.deadline), GROUP)
    assert (machine.type, machine.market, machine.ended) == ("g6.xlarge", "spot", 0.0)
    assert machine.zone in ("us-east-1a", "us-east-1b")
    assert machine.launched == pytest.approx(time.time(), abs=60)

    fleet.scale_to_zero(lab.client("autoscaling"), GROUP)
    (machine,) = lab.machines(RUN)
    assert not machine.is_billing
    assert machine.ended == pytest.approx(time.time(), abs=60)
    assert lab.machines("another-run") == []


def test_machines_of_another_installation_are_not_seen(lab: Lab) -> None:
    lab.client("ec2").run_instances(
        ImageId="ami-12345678", MinCount=1, MaxCount=1,
        TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": Tag.INSTALLATION, "Value": "other"}]}],
    )  # fmt: skip
    assert lab.machines() == []


def test_a_group_tells_what_it_is_asked_for_and_none_is_none(lab: Lab) -> None:
    autoscaling = lab.client("autoscaling")
    assert fleet.group_state(autoscaling, "nowhere") is None
    before = fleet.group_state(autoscaling, GROUP)
    assert before == Group(name=GROUP, desired=0, maximum=2, types=("g6.xlarge", "g5.xlarge"))
    spec = lab.launch(nodes=2)
    after = fleet.group_state(autoscaling, GROUP)
    assert after is not None
    assert (after.desired, after.run_id, after.deadline) == (2, RUN, int(spec.deadline))
    assert sorted(after.instance_ids) == sorted(machine.id for machine in lab.machines())


def offer(lab: Lab) -> tuple[str, tuple[str, ...]]:
    state = fleet.group_state(lab.client("autoscaling"), GROUP)
    assert state is not None
    return state.market, state.types


def test_market_and_types_change_and_leave_the_rest(lab: Lab) -> None:
    autoscaling = lab.client("autoscaling")
    fleet.offer(autoscaling, GROUP, "on-demand", ["g6e.xlarge", "g5.2xlarge"], 2)
    assert offer(lab) == ("on-demand", ("g6e.xlarge", "g5.2xlarge"))
    fleet.use_market(autoscaling, GROUP, "spot")
    assert offer(lab) == ("spot", ("g6e.xlarge", "g5.2xlarge"))
    fleet.use_market(autoscaling, GROUP, "on-demand")
    fleet.scale(autoscaling, GROUP, 1)
    (machine,) = lab.machines()
    assert (machine.type, machine.market) == ("g6e.xlarge", "on-demand")


def test_a_group_never_has_more_machines_than_its_run_asked_for(lab: Lab) -> None:
    autoscaling = lab.client("autoscaling")
    fleet.offer(autoscaling, GROUP, "spot", ["g6.xlarge"], 1)
    fleet.scale(autoscaling, GROUP, 1)
    with pytest.raises(autoscaling.exceptions.ClientError, match=r"must be between .* max size:1"):
        fleet.scale(autoscaling, GROUP, 2)  # as a machine may try with its role
    assert len(lab.billing()) == 1
    fleet.scale_to_zero(autoscaling, GROUP)
    fleet.offer(autoscaling, GROUP, "spot", ["g6.xlarge"], 2)
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
         "configuration.", "no such machine free", "more types or zones"),
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
    (refusal,) = fleet.why_no_machine(autoscaling, GROUP)
    assert reason in refusal.reason
    assert message in refusal.reason  # AWS's own words are never lost
    assert fix in refusal.fix
    assert bool(refusal.fix) == bool(fix)
    assert fleet.why_no_machine(autoscaling, GROUP, since=time.time() + 60) == []

    lab.aws.set(launch_failures={GROUP: ""})
    assert fleet.group_state(autoscaling, GROUP)  # the group tries again
    assert lab.billing()
    assert fleet.why_no_machine(autoscaling, GROUP) == []
