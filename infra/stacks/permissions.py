"""What each role may do. Every statement is written by hand, so that the whole list can be read and compared.

On a machine there are two roles. The host's boot scripts have the machine's role, the container has the run's: boot
takes it on, narrows it to the one run by a session policy, and hands the credentials in. No role may delete an object:
the bucket's lifecycle does that. This module does not import CDK.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from infra.config import PREPARE_PREFIX, Installation, Tag

SESSION_MANAGER = (  # its agent needs no more; AWS's managed policy would allow it to read all parameters, too
    "ssm:UpdateInstanceInformation",
    "ssmmessages:CreateControlChannel",
    "ssmmessages:CreateDataChannel",
    "ssmmessages:OpenControlChannel",
    "ssmmessages:OpenDataChannel",
)
RUNS = "runs/*"
PREPARATIONS = f"runs/{PREPARE_PREFIX}*"
# What launch and the guard believe: arguments, budget and deadline, what was spent, what the guard has seen. A `*`
# matches a '/', too.
CONTROL = ("runs/*/spec.json", "runs/*/spend.json", "runs/*/guard.json")
KEYS = "The keys below the prefix are made by the runs."
GROUP_ID = "AWS makes up the group's id; its name is given."
NO_RESOURCE = "AWS knows no resource for these actions."


@dataclass(frozen=True, kw_only=True)
class Statement:
    """`why` is the reason for a `*` in the resources of what is allowed: cdk-nag reports a `*` without a reason."""

    actions: Sequence[str]
    on: Sequence[str]
    condition: Mapping[str, Any] | None = None
    why: str = ""
    effect: Literal["Allow", "Deny"] = "Allow"


@dataclass(frozen=True, kw_only=True)
class Arns:
    """The resources that the statements name."""

    installation: Installation
    partition: str
    region: str
    account: str
    bucket: str
    secret: str
    run_logs: str
    guard_logs: str
    topic: str
    repository: str  # of the image; "" if the image is not in ECR

    def of(self, service: str, resource: str) -> str:
        """A resource in this account and region."""
        return f"arn:{self.partition}:{service}:{self.region}:{self.account}:{resource}"

    def objects(self, *keys: str) -> list[str]:
        return [f"{self.bucket}/{key}" for key in keys]

    def groups(self, *names: str) -> list[str]:
        return [self.of("autoscaling", f"autoScalingGroup:*:autoScalingGroupName/{name}") for name in names]


def training_run(arns: Arns) -> list[Statement]:
    # Without ListBucket, S3 answers 403 for a missing key. The condition on the prefix holds for the key then.
    checkpoints = arns.objects("checkpoints/*")
    return [
        list_bucket(arns, "datasets/*", RUNS, "checkpoints/*"),
        Statement(actions=["s3:GetObject"], on=arns.objects("datasets/*", RUNS, "checkpoints/*"), why=KEYS),
        Statement(actions=["s3:PutObject"], on=arns.objects(RUNS, "checkpoints/*"), why=KEYS),
        Statement(actions=["s3:PutObjectTagging"], on=checkpoints, why=KEYS),
        Statement(actions=["s3:AbortMultipartUpload"], on=arns.objects(RUNS, "checkpoints/*"), why=KEYS),
        Statement(actions=["s3:ListBucketMultipartUploads"], on=[arns.bucket]),
        no_control(arns),
        no_other_storage(arns),
    ]


def preparing_run(arns: Arns) -> list[Statement]:
    datasets, runs = arns.objects("datasets/*"), arns.objects(f"{PREPARATIONS}/*")
    return [
        list_bucket(arns, "datasets/*", PREPARATIONS),
        Statement(actions=["s3:GetObject"], on=[*datasets, *runs], why=KEYS),
        Statement(actions=["s3:PutObject"], on=runs, why=KEYS),
        # Only new names: https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes-enforce.html
        # The second statement is for the parts of an upload, whose end is a creation again.
        Statement(actions=["s3:PutObject"], on=datasets, condition={"Null": {"s3:if-none-match": "false"}}, why=KEYS),
        Statement(
            actions=["s3:PutObject"],
            on=datasets,
            condition={"Bool": {"s3:ObjectCreationOperation": "false"}},
            why=KEYS,
        ),
        Statement(actions=["s3:AbortMultipartUpload"], on=[*datasets, *runs], why=KEYS),
        no_control(arns),
        no_other_storage(arns),
    ]


def training_machine(arns: Arns) -> list[Statement]:
    files = (f"{RUNS}/spec.json", f"{RUNS}/done.json", f"{RUNS}/failed.json", "checkpoints/*/HEAD.json")
    return [
        list_bucket(arns, RUNS, "checkpoints/*"),
        Statement(actions=["s3:GetObject"], on=arns.objects(*files), why=KEYS),
        Statement(actions=["s3:PutObject"], on=arns.objects(f"{RUNS}/failed.json"), why=KEYS),
        *machine(arns, "train"),
    ]


def preparing_machine(arns: Arns) -> list[Statement]:
    files = [f"{PREPARATIONS}/{name}.json" for name in ("spec", "done", "failed")]
    return [
        list_bucket(arns, PREPARATIONS),
        Statement(actions=["s3:GetObject"], on=arns.objects(*files), why=KEYS),
        Statement(actions=["s3:PutObject"], on=arns.objects(f"{PREPARATIONS}/failed.json"), why=KEYS),
        *machine(arns, "prepare"),
    ]


def machine(arns: Arns, kind: str) -> list[Statement]:
    """What every machine may do: pull the image, read the token, write logs, open a shell session, end itself."""
    pull = [
        Statement(
            actions=["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"],
            on=[arns.repository],
        ),
        Statement(actions=["ecr:GetAuthorizationToken"], on=["*"], why=NO_RESOURCE),
    ]
    return [
        no_control(arns),
        no_other_storage(arns),
        Statement(actions=["secretsmanager:GetSecretValue"], on=[arns.secret]),
        *(pull if arns.repository else []),
        Statement(actions=["logs:CreateLogStream", "logs:PutLogEvents"], on=[arns.run_logs]),
        Statement(actions=SESSION_MANAGER, on=["*"], why=NO_RESOURCE),
        Statement(
            actions=["autoscaling:SetDesiredCapacity", "autoscaling:TerminateInstanceInAutoScalingGroup"],
            on=arns.groups(*arns.installation.groups_of(kind)),
            why=GROUP_ID,
        ),
    ]


def no_other_storage(arns: Arns) -> Statement:
    """The alarm on the bucket's size sees the standard class alone. A request without a class means that one."""
    name = "s3:x-amz-storage-class"
    other = {"Null": {name: "false"}, "StringNotEquals": {name: "STANDARD"}}
    return Statement(actions=["s3:PutObject"], on=arns.objects("*"), condition=other, effect="Deny")


def no_control(arns: Arns) -> Statement:
    """No machine writes what limits it. A denial counts more than whatever another statement allows."""
    writing = ["s3:PutObject", "s3:PutObjectTagging", "s3:DeleteObject", "s3:DeleteObjectVersion"]
    return Statement(actions=writing, on=arns.objects(*CONTROL), effect="Deny")


def taking_on(role: str) -> Statement:
    """A machine takes on the role of its runs, and no other."""
    return Statement(actions=["sts:AssumeRole"], on=[role])


def guard(arns: Arns) -> list[Statement]:
    return [
        Statement(
            actions=[
                "ec2:DescribeInstances",
                "ec2:DescribeSpotPriceHistory",
                "autoscaling:DescribeAutoScalingGroups",
                "autoscaling:DescribeScalingActivities",
            ],
            on=["*"],
            why=NO_RESOURCE,
        ),
        # The update is for what a person has changed by hand: a minimum, a maximum. Nothing else here needs it, since
        # AWS may refuse it to who may not use the group's launch template.
        Statement(
            actions=[
                "autoscaling:SetDesiredCapacity",
                "autoscaling:TerminateInstanceInAutoScalingGroup",
                "autoscaling:UpdateAutoScalingGroup",
            ],
            on=arns.groups(*arns.installation.groups),
            why=GROUP_ID,
        ),
        Statement(
            actions=["ec2:TerminateInstances"],
            on=[arns.of("ec2", "instance/*")],
            condition={"StringEquals": {f"aws:ResourceTag/{Tag.INSTALLATION}": arns.installation.name}},
            why="AWS makes up the ids of the machines; the tag says which are ours.",
        ),
        Statement(
            actions=["scheduler:DeleteSchedule"],
            on=[arns.of("scheduler", f"schedule/{arns.installation.schedule_group}/*")],
            why="A stop schedule has the name of its run.",
        ),
        list_bucket(arns, RUNS, "checkpoints/*"),
        Statement(actions=["s3:GetObject"], on=arns.objects(RUNS, "checkpoints/*/HEAD.json"), why=KEYS),
        Statement(actions=["s3:PutObject"], on=arns.objects("runs/*/spend.json", "runs/*/guard.json"), why=KEYS),
        Statement(actions=["sns:Publish"], on=[arns.topic]),
        Statement(actions=["logs:CreateLogStream", "logs:PutLogEvents"], on=[arns.guard_logs]),
    ]


def scheduler(arns: Arns) -> list[Statement]:
    groups = arns.groups(*arns.installation.groups)
    return [Statement(actions=["autoscaling:SetDesiredCapacity"], on=groups, why=GROUP_ID)]


def list_bucket(arns: Arns, *prefixes: str) -> Statement:
    return Statement(actions=["s3:ListBucket"], on=[arns.bucket], condition={"StringLike": {"s3:prefix": [*prefixes]}})


def building(*, bucket: str, source: str, repository: str, logs: str) -> list[Statement]:
    """What CodeBuild does to build the image: read its source, write its log, push. It can delete nothing.

    Sources: docs.aws.amazon.com/codebuild/latest/userguide/setting-up-service-role.html, and
    docs.aws.amazon.com/AmazonECR/latest/userguide/image-push-iam.html.
    """
    push = ("BatchCheckLayerAvailability", "BatchGetImage", "CompleteLayerUpload", "InitiateLayerUpload", "PutImage",
            "UploadLayerPart")  # fmt: skip
    return [
        Statement(actions=["s3:GetObject", "s3:GetObjectVersion"], on=[source]),
        Statement(actions=["s3:GetBucketAcl", "s3:GetBucketLocation"], on=[bucket]),
        Statement(actions=[f"ecr:{action}" for action in push], on=[repository]),
        Statement(actions=["ecr:GetAuthorizationToken"], on=["*"], why=NO_RESOURCE),
        Statement(actions=["logs:CreateLogStream", "logs:PutLogEvents"], on=[logs]),
    ]
