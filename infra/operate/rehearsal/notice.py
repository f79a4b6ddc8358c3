"""A real notice of two minutes, by AWS Fault Injection Service: its template, its role, and their end."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import botocore.exceptions

from infra.config import Installation, Tag
from infra.operate.session import Aws, explained

ACTION = (
    "aws:ec2:send-spot-instance-interruptions"  # docs.aws.amazon.com/fis/latest/userguide/fis-actions-reference.html
)
ROLE_SECONDS = 60.0  # IAM takes some seconds until other services know a new role


def send_notice(aws: Aws, installation: Installation, machine: str) -> None:
    """Ask AWS to reclaim a spot machine of the installation. Raises AwsError if AWS refuses.

    The role's permissions are those of the EC2 Spot workshop for this action: github.com/awslabs/ec2-spot-workshops
    """
    instance = f"arn:{partition(aws)}:ec2:{aws.region}:{aws.account}:instance/{machine}"
    with explained("a notice by AWS Fault Injection Service"):
        role = _make_role(aws, installation, instance)
        template = _patiently(lambda: _make_template(aws, installation, instance, role))
        started = aws.client("fis").start_experiment(
            clientToken=f"{template}-{time.time():.0f}", experimentTemplateId=template, tags=_tags(installation)
        )["experiment"]
        if started["state"]["status"] in ("failed", "stopped", "cancelled"):
            raise ValueError(f"the experiment {started['state']}")


def forget_notice(aws: Aws, installation: Installation) -> None:
    """Delete template and role, also those that an earlier rehearsal left. Neither costs anything."""
    fis, iam, name = aws.client("fis"), aws.client("iam"), installation.notice_role
    with explained(f"the role {name}"):
        try:
            iam.get_role(RoleName=name)
        except iam.exceptions.NoSuchEntityException:
            return  # the role comes first
    with explained("the templates of AWS Fault Injection Service"):
        for page in fis.get_paginator("list_experiment_templates").paginate():
            for one in page["experimentTemplates"]:
                if one.get("tags", {}).get(Tag.INSTALLATION) == installation.name:
                    fis.delete_experiment_template(id=one["id"])
    with explained(f"delete the role {name}"):
        with suppress(iam.exceptions.NoSuchEntityException):
            iam.delete_role_policy(RoleName=name, PolicyName="notice")
        iam.delete_role(RoleName=name)


def partition(aws: Aws) -> str:
    return str(aws.session.get_partition_for_region(aws.region))


def _tags(installation: Installation) -> dict[str, str]:
    return {Tag.INSTALLATION: installation.name}


def trust_of_notice(aws: Aws) -> dict[str, Any]:
    """Only experiments of this account and region may have the role: docs.aws.amazon.com/fis/latest/userguide/
    getting-started-iam-service-role.html, "Create a trust relationship policy", on the confused deputy.
    """
    ours = {
        "StringEquals": {"aws:SourceAccount": aws.account},
        "ArnLike": {"aws:SourceArn": f"arn:{partition(aws)}:fis:{aws.region}:{aws.account}:experiment/*"},
    }
    allowed = {"Effect": "Allow", "Principal": {"Service": "fis.amazonaws.com"}, "Action": "sts:AssumeRole"}
    return {"Version": "2012-10-17", "Statement": [allowed | {"Condition": ours}]}


def _make_role(aws: Aws, installation: Installation, instance: str) -> str:
    iam, name = aws.client("iam"), installation.notice_role
    tags = [{"Key": key, "Value": value} for key, value in _tags(installation).items()]
    made = iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(trust_of_notice(aws)), Tags=tags)
    allowed = [
        {"Effect": "Allow", "Action": "ec2:DescribeInstances", "Resource": "*"},  # EC2 takes no narrower one
        {"Effect": "Allow", "Action": "ec2:SendSpotInstanceInterruptions", "Resource": instance},
    ]
    policy = json.dumps({"Version": "2012-10-17", "Statement": allowed})
    iam.put_role_policy(RoleName=name, PolicyName="notice", PolicyDocument=policy)
    return str(made["Role"]["Arn"])


def _make_template(aws: Aws, installation: Installation, instance: str, role: str) -> str:
    made = aws.client("fis").create_experiment_template(
        clientToken=f"{installation.name}-{time.time():.0f}", description=f"a notice for {installation.name}",
        roleArn=role, stopConditions=[{"source": "none"}], tags=_tags(installation),
        targets={
            "machine": {
                "resourceType": "aws:ec2:spot-instance", "resourceArns": [instance], "selectionMode": "ALL",
            }
        },
        actions={
            "reclaim": {
                "actionId": ACTION, "parameters": {"durationBeforeInterruption": "PT2M"},
                "targets": {"SpotInstances": "machine"},
            }
        },
    )  # fmt: skip
    return str(made["experimentTemplate"]["id"])


def _patiently(ask: Callable[[], Any]) -> Any:
    """What AWS answers, once it knows the new role."""
    until = time.monotonic() + ROLE_SECONDS
    while True:
        try:
            return ask()
        except botocore.exceptions.ClientError as error:
            if error.response["Error"].get("Code") != "ValidationException" or time.monotonic() > until:
                raise
        time.sleep(3.0)
