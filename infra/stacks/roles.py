"""What each role may do. Every statement is written by hand, so that the whole list can be read and compared.

No role may delete an object: the bucket's lifecycle does that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aws_cdk as cdk
from aws_cdk import aws_iam as iam
from constructs import Construct

from infra.config import Installation, Tag
from infra.stacks.acknowledge import acknowledge

SESSION_MANAGER = (  # its agent needs no more; AWS's managed policy would allow it to read all parameters, too
    "ssm:UpdateInstanceInformation",
    "ssmmessages:CreateControlChannel",
    "ssmmessages:CreateDataChannel",
    "ssmmessages:OpenControlChannel",
    "ssmmessages:OpenDataChannel",
)
KEYS = "The keys below the prefix are made by the runs."
GROUP_ID = "AWS makes up the group's id; its name is given."
NO_RESOURCE = "AWS knows no resource for these actions."


@dataclass(frozen=True, kw_only=True)
class Allow:
    """A statement. `why` is the reason for a `*` in its resources: cdk-nag reports a `*` without a reason."""

    actions: Sequence[str]
    on: Sequence[str]
    condition: Mapping[str, Any] | None = None
    why: str = ""

    def statement(self) -> iam.PolicyStatement:
        return iam.PolicyStatement(actions=[*self.actions], resources=[*self.on], conditions=self.condition)


@dataclass(frozen=True, kw_only=True)
class Arns:
    """The resources that the statements name."""

    installation: Installation
    bucket: str
    secret: str
    run_logs: str
    guard_logs: str
    topic: str
    repository: str  # of the image; "" if the image is not in ECR

    def objects(self, *keys: str) -> list[str]:
        return [f"{self.bucket}/{key}" for key in keys]

    def groups(self, *names: str) -> list[str]:
        return [arn("autoscaling", f"autoScalingGroup:*:autoScalingGroupName/{name}") for name in names]

    def both_groups(self) -> list[str]:
        return self.groups(self.installation.train_group, self.installation.prepare_group)


def arn(service: str, resource: str) -> str:
    """The ARN of a resource in this account and region."""
    return f"arn:{cdk.Aws.PARTITION}:{service}:{cdk.Aws.REGION}:{cdk.Aws.ACCOUNT_ID}:{resource}"


def training(arns: Arns) -> list[Allow]:
    # Without ListBucket, S3 answers 403 for a missing key. The condition on the prefix holds for the key then.
    return [
        list_bucket(arns, "datasets/*", "runs/*", "checkpoints/*"),
        Allow(actions=["s3:GetObject"], on=arns.objects("datasets/*", "runs/*", "checkpoints/*"), why=KEYS),
        Allow(actions=["s3:PutObject"], on=arns.objects("runs/*", "checkpoints/*"), why=KEYS),
        Allow(actions=["s3:PutObjectTagging", "s3:AbortMultipartUpload"], on=arns.objects("checkpoints/*"), why=KEYS),
        Allow(actions=["s3:ListBucketMultipartUploads"], on=[arns.bucket]),
        *machine(arns, arns.installation.train_group),
    ]


def preparation(arns: Arns) -> list[Allow]:
    own = arns.objects("datasets/*", "runs/prepare-*/*")
    return [
        list_bucket(arns, "datasets/*", "runs/prepare-*"),
        Allow(actions=["s3:GetObject"], on=own, why=KEYS),
        Allow(actions=["s3:PutObject"], on=own, why=KEYS),
        *machine(arns, arns.installation.prepare_group),
    ]


def machine(arns: Arns, group: str) -> list[Allow]:
    """What every machine may do: pull the image, read the token, write logs, open a shell session, end itself."""
    pull = [
        Allow(
            actions=["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"],
            on=[arns.repository],
        ),
        Allow(actions=["ecr:GetAuthorizationToken"], on=["*"], why=NO_RESOURCE),
    ]
    return [
        Allow(actions=["secretsmanager:GetSecretValue"], on=[arns.secret]),
        *(pull if arns.repository else []),
        Allow(actions=["logs:CreateLogStream", "logs:PutLogEvents"], on=[arns.run_logs]),
        Allow(actions=SESSION_MANAGER, on=["*"], why=NO_RESOURCE),
        Allow(
            actions=["autoscaling:SetDesiredCapacity", "autoscaling:TerminateInstanceInAutoScalingGroup"],
            on=arns.groups(group),
            why=GROUP_ID,
        ),
    ]


def guard(arns: Arns) -> list[Allow]:
    return [
        Allow(
            actions=[
                "ec2:DescribeInstances",
                "ec2:DescribeSpotPriceHistory",
                "autoscaling:DescribeAutoScalingGroups",
                "autoscaling:DescribeScalingActivities",
            ],
            on=["*"],
            why=NO_RESOURCE,
        ),
        Allow(
            actions=["autoscaling:SetDesiredCapacity", "autoscaling:UpdateAutoScalingGroup"],
            on=arns.both_groups(),
            why=GROUP_ID,
        ),
        Allow(
            actions=["ec2:TerminateInstances"],
            on=[arn("ec2", "instance/*")],
            condition={"StringEquals": {f"aws:ResourceTag/{Tag.INSTALLATION}": arns.installation.name}},
            why="AWS makes up the ids of the machines; the tag says which are ours.",
        ),
        Allow(
            actions=["scheduler:DeleteSchedule"],
            on=[arn("scheduler", f"schedule/{arns.installation.schedule_group}/*")],
            why="A stop schedule has the name of its run.",
        ),
        list_bucket(arns, "runs/*", "checkpoints/*"),
        Allow(actions=["s3:GetObject"], on=arns.objects("runs/*", "checkpoints/*/HEAD.json"), why=KEYS),
        Allow(actions=["s3:PutObject"], on=arns.objects("runs/*/spend.json", "runs/*/guard.json"), why=KEYS),
        Allow(actions=["sns:Publish"], on=[arns.topic]),
        Allow(actions=["logs:CreateLogStream", "logs:PutLogEvents"], on=[arns.guard_logs]),
    ]


def scheduler(arns: Arns) -> list[Allow]:
    return [Allow(actions=["autoscaling:UpdateAutoScalingGroup"], on=arns.both_groups(), why=GROUP_ID)]


def list_bucket(arns: Arns, *prefixes: str) -> Allow:
    return Allow(actions=["s3:ListBucket"], on=[arns.bucket], condition={"StringLike": {"s3:prefix": [*prefixes]}})


def role(scope: Construct, id: str, principal: iam.IPrincipal, allowed: Sequence[Allow]) -> iam.Role:
    made = iam.Role(
        scope,
        id,
        assumed_by=principal,
        inline_policies={id: iam.PolicyDocument(statements=[allow.statement() for allow in allowed])},
    )
    for allow in allowed:
        if allow.why:
            for resource in cdk.Stack.of(made).resolve([*allow.on]):
                if "*" in (text := _as_cdk_nag_writes(resource)):
                    acknowledge(made.node.default_child, f"IAM5[Resource::{text}]", allow.why)
    return made


def _as_cdk_nag_writes(value: Any) -> str:
    match value:
        case {"Fn::Join": [delimiter, parts]}:
            return str(delimiter).join(map(_as_cdk_nag_writes, parts))
        case {"Fn::ImportValue": name}:
            return str(name)
        case {"Ref": name}:
            return f"<{name}>"
        case {"Fn::GetAtt": [resource, attribute]}:
            return f"<{resource}.{attribute}>"
    return str(value)
