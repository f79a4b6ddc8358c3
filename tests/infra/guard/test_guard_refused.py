"""What a guard still does when AWS refuses it something, when a file of the run is broken, or it fails itself."""

from __future__ import annotations

import json
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from infra.guard import Guard, GuardSettings
from infra.operate.planning import offering
from infra.run import fleet
from tests.emulator.aws import REGION
from tests.emulator.principals import put_role
from tests.infra.fleets import BUCKET, INSTALLATION, RUN, Lab
from trainer.contract import run_key

SPOT, ON_DEMAND = INSTALLATION.groups_of("train")


def as_the_guard(lab: Lab) -> Guard:
    """One that may do what the deployed function may, and no more."""
    role = put_role(lab.client("iam"), "guard", BUCKET)
    granted = lab.client("sts").assume_role(RoleArn=role, RoleSessionName="guard")["Credentials"]
    session = boto3.Session(granted["AccessKeyId"], granted["SecretAccessKey"], granted["SessionToken"], REGION)
    topic = lab.client("sns").create_topic(Name="topic")["TopicArn"]
    settings = GuardSettings(installation=INSTALLATION.name, bucket=BUCKET, topic=topic, groups=INSTALLATION.groups)
    connect: Any = session.client
    return Guard(lambda service: connect(service, endpoint_url=lab.aws.endpoint), settings)


def test_the_guard_changes_to_on_demand_and_stops_with_no_permission_but_its_own(lab: Lab) -> None:
    """AWS may want ec2:RunInstances of whoever touches a launch template. The guard has it not, and needs it not."""
    lab.aws.set(launch_failures={SPOT: "UnfulfillableCapacity - Unable to fulfill capacity"})
    lab.launch(on_demand_after_minutes=10.0, deadline=lab.began + 3600)
    guard = as_the_guard(lab)
    with pytest.raises(ClientError, match=r"AccessDenied.*ec2:RunInstances"):
        offering.offer(guard.autoscaling, SPOT, "on-demand", ["g6.xlarge"], 1)
    lab.aws.clear_calls()
    for minute in (0, 10):
        assert guard.tick(lab.began + minute * 60) == []
    assert (lab.desired(SPOT), lab.desired(ON_DEMAND)) == (0, 1)
    assert [machine.market for machine in lab.machines() if machine.is_billing] == ["on-demand"]
    assert guard.tick(lab.began + 61 * 60) == []
    assert (lab.desired(SPOT), lab.desired(ON_DEMAND)) == (0, 0)
    assert lab.billing() == []
    assert "autoscaling.UpdateAutoScalingGroup" not in lab.aws.calls()


def test_a_heartbeat_that_may_not_be_read_is_no_hang(lab: Lab) -> None:
    lab.launch()
    lab.beat()
    (machine,) = lab.billing()
    guard = lab.guard()
    guard.tick(lab.began)
    lab.aws.fault("s3.GetObject", code="AccessDenied", status=403)
    for minute in range(16, 40):
        assert guard.tick(lab.began + minute * 60) != []
    assert lab.billing() == [machine]  # what the process remembers bridges it
    assert lab.desired() == 1


def test_budget_and_tally_outlive_a_bucket_that_cannot_be_written(lab: Lab) -> None:
    lab.launch(budget_usd=0.15)
    guard = lab.guard()
    guard.tick(lab.began)
    lab.aws.fault("s3.*", code="InternalError", status=500)
    guard.tick(lab.began + 29 * 60)
    assert lab.desired() == 0
    lab.aws.heal()
    guard.tick(lab.began + 30 * 60)
    (machine,) = lab.spend().machines
    assert machine.ended


def test_a_tally_that_cannot_be_read_is_never_overwritten(lab: Lab) -> None:
    lab.launch()
    lab.put(run_key(RUN, "spend.json"), b"not a tally")
    assert any("spend.json is not valid" in problem for problem in lab.tick(1))
    assert lab.get(run_key(RUN, "spend.json")) == b"not a tally"
    assert lab.desired() == 1
    lab.tick(16)
    assert lab.desired() == 0
    assert any("spend.json is not valid" in message for message in lab.mail())


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"run_id": 1}', None])
def test_a_spec_that_was_broken_by_hand_stops_the_run_and_says_so(lab: Lab, body: bytes | None) -> None:
    lab.launch()
    if body is None:
        edited = json.loads(lab.get(run_key(RUN, "spec.json"))) | {"budget_usd": "ten"}
        body = json.dumps(edited).encode()
    lab.put(run_key(RUN, "spec.json"), body)
    lab.tick(1)
    assert lab.desired() == 0
    assert any("make launch" in message for message in lab.mail())


@pytest.mark.parametrize(
    "call", ["ec2.DescribeInstances", "ec2.DescribeSpotPriceHistory", "sns.Publish", "s3.GetObject"]
)
def test_the_deadline_holds_whatever_else_aws_refuses(lab: Lab, call: str) -> None:
    lab.launch()
    lab.aws.fault(call, code="UnauthorizedOperation", status=403)
    lab.tick(601)
    assert lab.desired() == 0


def test_the_deadline_holds_whatever_breaks_in_the_guard_itself(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.launch()

    def broken(*arguments: object) -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr("infra.guard.reading.read_run", broken)
    assert any("a mistake" in problem for problem in lab.tick(599))
    assert lab.tick(601)
    assert lab.desired() == 0


def test_a_group_that_cannot_be_read_is_stopped_after_its_machines_tags(lab: Lab) -> None:
    lab.launch()
    lab.aws.fault("autoscaling.DescribeAutoScalingGroups", code="AccessDenied", status=403)
    lab.tick(599)
    lab.aws.heal()
    assert lab.desired() == 1
    lab.aws.fault("autoscaling.DescribeAutoScalingGroups", code="AccessDenied", status=403)
    lab.tick(601)
    lab.aws.heal()
    assert lab.desired() == 0


def test_a_run_that_has_changed_to_on_demand_keeps_that_machine_while_its_groups_cannot_be_read(lab: Lab) -> None:
    """The tags of the machines alone tell that there is one too many, of spot."""
    lab.launch(on_demand_after_minutes=10.0)
    fleet.scale(lab.client("autoscaling"), ON_DEMAND, 1)
    lab.aws.fault("autoscaling.DescribeAutoScalingGroups", code="AccessDenied", status=403)
    lab.tick(1)
    lab.aws.heal()
    assert (lab.desired(SPOT), lab.desired(ON_DEMAND)) == (0, 1)


def test_a_refused_notice_is_told_at_the_next_look(lab: Lab) -> None:
    lab.launch()
    lab.aws.fault("sns.Publish", code="AuthorizationError", status=403)
    lab.tick(601)
    assert lab.desired() == 0
    lab.aws.heal()
    assert lab.mail() == []
    lab.tick(602)
    assert len(lab.mail()) == 1


def test_what_a_machine_says_does_not_make_the_guard_s_memory_too_large_to_be_read_again(lab: Lab) -> None:
    lab.launch()
    lab.beat(phase="\u00e9" * 150_000)
    lab.tick(1)
    lab.tick(1)
    assert len(lab.get(run_key(RUN, "guard.json"))) < 10_000
    lab.put(run_key(RUN, "failed.json"), {"attempt": 9, "message": "\u00e9" * 150_000})
    lab.tick(16)
    lab.tick(17)
    assert len(lab.get(run_key(RUN, "guard.json"))) < 10_000
    assert lab.desired() == 0
