"""The notice that AWS Fault Injection Service sends: what is asked of it, and that template and role go.

The emulated service takes the template and starts the experiment; it does not reclaim.
"""

from __future__ import annotations

import json
from typing import Any

import boto3
import pytest

from infra.config import Installation
from infra.operate.commands.policy import rights_by
from infra.operate.rehearsal.notice import ACTION, forget_notice, send_notice
from infra.operate.rehearsal.scope import rehearsal_of
from infra.operate.rights.right import Names, managed_policies
from infra.operate.session import Aws as Operator
from infra.operate.session import AwsError
from tests.emulator.aws import ACCOUNT, REGION, Aws
from tests.emulator.inventory import inventory
from tests.emulator.policies import trusts
from tests.infra.operate.desk import asked_by_role, granted, unasked
from tests.infra.operator import operator

REHEARSED = rehearsal_of(Installation())
MACHINE = "i-0123456789abcdef0"
ARN = f"arn:aws:ec2:{REGION}:{ACCOUNT}:instance/{MACHINE}"


def templates(aws: Aws) -> list[dict[str, Any]]:
    fis = aws.client("fis")
    found = fis.list_experiment_templates()["experimentTemplates"]
    return [fis.get_experiment_template(id=one["id"])["experimentTemplate"] for one in found]


def test_the_notice_is_for_one_machine_two_minutes_before_its_end_by_a_role_that_may_do_nothing_else(aws: Aws) -> None:
    send_notice(operator(), REHEARSED, MACHINE)
    (template,) = templates(aws)
    (target,) = template["targets"].values()
    assert (target["resourceType"], target["resourceArns"]) == ("aws:ec2:spot-instance", [ARN])
    (action,) = template["actions"].values()
    assert (action["actionId"], action["parameters"]) == (ACTION, {"durationBeforeInterruption": "PT2M"})
    (experiment,) = aws.client("fis").list_experiments()["experiments"]
    assert experiment["experimentTemplateId"] == template["id"]
    name = template["roleArn"].rpartition("/")[2]
    policy = aws.client("iam").get_role_policy(RoleName=name, PolicyName="notice")["PolicyDocument"]
    allowed = (policy if isinstance(policy, dict) else json.loads(policy))["Statement"]
    assert {one["Action"]: one["Resource"] for one in allowed} == {
        "ec2:DescribeInstances": "*", "ec2:SendSpotInstanceInterruptions": ARN,
    }  # fmt: skip


def test_no_experiment_of_another_account_gets_the_role(aws: Aws) -> None:
    send_notice(operator(), REHEARSED, MACHINE)
    (template,) = templates(aws)
    name = template["roleArn"].rpartition("/")[2]
    trust = aws.client("iam").get_role(RoleName=name)["Role"]["AssumeRolePolicyDocument"]

    def is_trusted(account: str, experiment: str) -> bool:
        arn = f"arn:aws:fis:{REGION}:{experiment}:experiment/EXP1"
        return trusts(trust, "fis.amazonaws.com", {"aws:SourceAccount": account, "aws:SourceArn": arn})

    assert is_trusted(ACCOUNT, ACCOUNT)
    assert not is_trusted("210987654321", ACCOUNT)
    assert not is_trusted(ACCOUNT, "210987654321")
    assert not trusts(trust, "fis.amazonaws.com")


def test_template_and_role_go_also_after_a_kill_in_between_and_those_of_others_stay(aws: Aws) -> None:
    other = rehearsal_of(Installation(name="other"))
    send_notice(operator(), other, MACHINE)
    before = inventory(aws)
    forget_notice(operator(), REHEARSED)  # there is nothing yet
    aws.fault("fis.StartExperiment", "ThrottlingException")
    with pytest.raises(AwsError, match="a notice by AWS Fault Injection Service"):
        send_notice(operator(), REHEARSED, MACHINE)
    aws.heal()
    assert len(templates(aws)) == 2
    forget_notice(operator(), REHEARSED)
    forget_notice(operator(), REHEARSED)
    assert inventory(aws) == before
    assert [one["tags"]["resnet-spot"] for one in templates(aws)] == [other.name]


def test_a_notice_and_its_end_need_all_that_the_policy_of_a_rehearsal_has_beyond_those_of_other_commands(
    aws: Aws, monkeypatch: pytest.MonkeyPatch
) -> None:
    rights = rights_by(Names(installation=Installation(), account=aws.account, region=aws.region), ["rehearse"])
    for name, value in granted(aws, *managed_policies(rights)).items():
        monkeypatch.setenv(name, value)
    rehearser = Operator(boto3.Session())
    send_notice(rehearser, REHEARSED, MACHINE)
    forget_notice(rehearser, REHEARSED)
    assert unasked([one for one in rights if [*one.by] == ["rehearse"]], asked_by_role(aws)) == []
