"""What the operator's commands may do: every permission, written by hand, with the commands that need it.

A test runs every command with its policy alone, and compares these with the calls that it makes. Which actions know
which resources and conditions is from AWS's Service Authorization Reference. Whoever only watches a run needs `status`,
`logs` and `runs`. `deploy` deploys through the roles of CDK's bootstrap. So it needs the right to take them on, and
none to make what the stacks consist of.
"""

from __future__ import annotations

from collections.abc import Sequence

from infra.config import AMI
from infra.operate.rights.rehearsing import rehearsing
from infra.operate.rights.right import EVERYTHING, Names, Right
from infra.operate.rights.sweeping import DESTROYING, SIX_LETTERS, sweeping

LAUNCHING = ("launch", "prepare")
STARTERS = (*LAUNCHING, "rehearse")
CHECKING = ("preflight", "deploy", *STARTERS)
DEPLOYING = ("deploy", "rehearse")
READING = ("status", "runs")
LOOKING = (*READING, "logs", "cost", "pull")
CHECKED = (
    "ec2:DescribeInstanceTypes",
    "ec2:DescribeInternetGateways", "ec2:DescribeRouteTables",
    "ec2:DescribeVpcBlockPublicAccessExclusions", "ec2:DescribeVpcBlockPublicAccessOptions", "ec2:DescribeVpcEndpoints",
    "ec2:GetEbsDefaultKmsKeyId", "iam:ListRoles", "servicequotas:GetAWSDefaultServiceQuota",
    "servicequotas:GetServiceQuota",
)  # fmt: skip
LISTS = "AWS knows no resource for an action that lists, describes or tells prices."
KEYS_OF_RUNS = "The keys below the prefix are made by the runs."
DATASETS = "The names of datasets are made by the preparations."
NAMED_BY_AWS = "AWS makes up the end of the name."
ID_OF_GROUP = "AWS makes up the group's id; its name is given."
RUN_NAME = "A stop schedule has the name of its run."
ID = "AWS makes up the ids; the tag says which are ours."
NEW = "Nothing of a machine that is yet to start has an id; it starts only from a launch template."


def rights(names: Names) -> tuple[Right, ...]:
    """Every permission, in the order of what it is for."""
    return (
        *finding(names), *reading_runs(names), *checking(names), *starting(names), *stopping(names), *deploying(names),
        *handling(names), *sweeping(names), *rehearsing(names),
    )  # fmt: skip


def rights_of(names: Names, commands: Sequence[str]) -> tuple[Right, ...]:
    """Those that these commands need."""
    return tuple(one for one in rights(names) if {*one.by} & {*commands})


def finding(names: Names) -> list[Right]:
    """What is deployed, and which machines there are."""
    storage, training = names.installation.storage_stack, names.installation.training_stack
    with_both = (*CHECKING, "status", "cost", "destroy")
    return [
        Right(
            by=(*CHECKING, *LOOKING, "secret", "shell", "destroy"), actions=["cloudformation:DescribeStacks"],
            on=names.stacks(storage), why=NAMED_BY_AWS,
        ),
        Right(
            by=with_both, actions=["cloudformation:DescribeStacks"], on=names.stacks(training), why=NAMED_BY_AWS
        ),
        Right(
            by=["preflight", "deploy", *DESTROYING], actions=["cloudformation:DescribeStacks"],
            on=names.stacks(names.installation.builder_stack), why=NAMED_BY_AWS,
        ),
        Right(
            by=(*CHECKING, *LOOKING, "stop", *DESTROYING),
            actions=["autoscaling:DescribeAutoScalingGroups"], on=EVERYTHING,
            why=LISTS,
        ),
        Right(
            by=(*CHECKING, "status", "runs", "logs", "shell", "stop", *DESTROYING), actions=["ec2:DescribeInstances"],
            on=EVERYTHING, why=LISTS,
        ),
        Right(by=["status", "logs", "rehearse"], actions=["autoscaling:DescribeScalingActivities"],
              on=EVERYTHING, why=LISTS),
    ]  # fmt: skip


def reading_runs(names: Names) -> list[Right]:
    """What runs have left in the bucket, and what stays there."""
    mine = {"StringLike": {"s3:prefix": ["runs/*", "checkpoints/*"]}}
    return [
        Right(by=[*LOOKING, "shell", *DESTROYING], actions=["s3:ListBucket"], on=[names.bucket], condition=mine,
              why=NAMED_BY_AWS),
        Right(
            by=[*LOOKING, *STARTERS, "shell", "destroy"], actions=["s3:GetObject"], on=names.objects("runs/*"),
            why=KEYS_OF_RUNS,
        ),
        Right(
            by=[*READING, "rehearse"], actions=["s3:GetObject"],
            on=names.objects("checkpoints/*/HEAD.json", "checkpoints/*/manifest/*"), why=KEYS_OF_RUNS,
        ),
        Right(by=["pull"], actions=["s3:GetObject"], on=names.objects("checkpoints/*"), why=KEYS_OF_RUNS),
        Right(
            by=["logs", "rehearse"], actions=["logs:FilterLogEvents"],
            on=[names.of("logs", f"log-group:{names.installation.log_group}:*")],
            why="The streams are made by the runs.",
        ),
        Right(by=["status", "cost", *DESTROYING], actions=["s3:ListBucketVersions"], on=[names.bucket],
              why=NAMED_BY_AWS),
        Right(by=["status", "cost", *DEPLOYING], actions=["ecr:DescribeImages"], on=names.images),
        Right(
            by=["cost"], actions=["cloudwatch:GetMetricStatistics", "logs:DescribeLogGroups"], on=EVERYTHING, why=LISTS
        ),
    ]  # fmt: skip


def checking(names: Names) -> list[Right]:
    """What must be so before a run may start."""
    return [
        Right(
            by=CHECKING,
            actions=CHECKED, on=EVERYTHING, why=LISTS,
        ),
        Right(
            by=[*CHECKING, "cost"],
            actions=["ec2:DescribeAvailabilityZones", "ec2:DescribeInstanceTypeOfferings", "ec2:DescribeSubnets"],
            on=EVERYTHING, why=LISTS,
        ),
        Right(by=CHECKING, actions=["freetier:GetAccountPlanState"], on=EVERYTHING, why=LISTS),
        Right(by=["preflight", *DEPLOYING], actions=["ec2:DescribeVpcs"], on=EVERYTHING, why=LISTS),
        Right(
            by=[*CHECKING, "cost", "destroy"], actions=["ec2:DescribeSpotPriceHistory"], on=EVERYTHING, why=LISTS
        ),
        Right(by=[*CHECKING, "cost"], actions=["pricing:GetProducts"], on=EVERYTHING, why=LISTS),
        Right(by=CHECKING, actions=["ssm:GetParameter"], on=[f"arn:aws:ssm:{names.region}::parameter{AMI}"]),
        Right(
            by=["preflight", *DEPLOYING], actions=["ssm:GetParameter"],
            on=[names.of("ssm", "parameter/cdk-bootstrap/hnb659fds/version")],
        ),
        Right(
            by=[*CHECKING, "cost"], actions=["cloudformation:ListStackResources"],
            on=names.stacks(names.installation.training_stack), why=NAMED_BY_AWS,
        ),
        # AWS asks the same permission for whether the bucket exists, and then no prefix is told.
        Right(by=CHECKING, actions=["s3:GetBucketVersioning", "s3:ListBucket"], on=[names.bucket], why=NAMED_BY_AWS),
        Right(
            by=[*CHECKING, "cost"], actions=["s3:GetObject"], on=names.objects("datasets/*/index.json"), why=DATASETS
        ),
        Right(
            by=["cost", "rehearse"], actions=["s3:ListBucket"], on=[names.bucket],
            condition={"StringLike": {"s3:prefix": "datasets/*"}}, why=NAMED_BY_AWS,
        ),
        Right(by=["preflight", *DEPLOYING], actions=["s3:GetBucketTagging"], on=[names.bucket], why=NAMED_BY_AWS),
        Right(by=[*CHECKING, "secret"], actions=["secretsmanager:DescribeSecret"], on=names.secret, why=SIX_LETTERS),
        Right(by=CHECKING, actions=["secretsmanager:GetSecretValue"], on=names.secret, why=SIX_LETTERS),
    ]  # fmt: skip


def starting(names: Names) -> list[Right]:
    """A run begins: its files, its group, its schedule. Auto Scaling lets only those set the types of a group who could
    run its launch template themselves: its user guide, "Control Amazon EC2 launch template usage".
    """
    made = [names.of("ec2", f"{kind}/*") for kind in ("instance", "network-interface", "volume")]
    used = [names.of("ec2", f"{kind}/*") for kind in ("placement-group", "security-group", "subnet")]
    by_template = {"ArnLike": {"ec2:LaunchTemplate": names.of("ec2", "launch-template/*")}}
    return [
        Right(by=STARTERS, actions=["s3:PutObject"], on=names.objects("runs/*/spec.json"), why=KEYS_OF_RUNS),
        Right(by=LAUNCHING, actions=["s3:DeleteObject"], on=names.objects("runs/*/failed.json"), why=KEYS_OF_RUNS),
        *(
            Right(
                by=by, actions=[f"autoscaling:{action}" for action in actions],
                on=names.groups(*names.installation.groups_of(kind)), why=ID_OF_GROUP,
            )
            for command, kind in (("launch", "train"), ("prepare", "prepare"))
            for by, actions in (
                ([command, "rehearse"], ["CreateOrUpdateTags", "SetDesiredCapacity", "UpdateAutoScalingGroup"]),
                ([command], ["ResumeProcesses"]),
            )
        ),
        Right(
            by=STARTERS, actions=["ec2:RunInstances"], on=[names.of("ec2", "launch-template/*")], condition=names.ours,
            why=ID,
        ),
        Right(
            by=STARTERS, actions=["ec2:RunInstances"], on=[f"arn:aws:ec2:{names.region}::image/*", *made, *used],
            condition=by_template, why=NEW,
        ),
        Right(
            by=STARTERS, actions=["ec2:CreateTags"], on=made,
            condition={"StringEquals": {"ec2:CreateAction": "RunInstances"}}, why=NEW,
        ),
        Right(
            by=STARTERS, actions=["iam:PassRole"], on=names.roles,
            condition={"StringEquals": {"iam:PassedToService": ["ec2.amazonaws.com", "scheduler.amazonaws.com"]}},
            why=NAMED_BY_AWS,
        ),
        Right(by=STARTERS, actions=["scheduler:CreateSchedule"], on=names.schedules, why=RUN_NAME),
        Right(by=LAUNCHING, actions=["scheduler:UpdateSchedule"], on=names.schedules, why=RUN_NAME),
    ]  # fmt: skip


def stopping(names: Names) -> list[Right]:
    groups = names.groups(*names.installation.groups)
    return [
        Right(
            by=["stop", *DESTROYING],
            actions=["autoscaling:SetDesiredCapacity", "autoscaling:UpdateAutoScalingGroup"], on=groups,
            why=ID_OF_GROUP,
        ),
        Right(
            by=["stop", *DESTROYING],
            actions=["ec2:TerminateInstances"], on=[names.of("ec2", "instance/*")], condition=names.ours,
            why=ID,
        ),
        Right(by=[*STARTERS, "stop", *DESTROYING], actions=["scheduler:ListSchedules"], on=EVERYTHING, why=LISTS),
        Right(by=[*STARTERS, "stop", *DESTROYING], actions=["scheduler:DeleteSchedule"],
              on=names.schedules, why=RUN_NAME),
    ]  # fmt: skip


def deploying(names: Names) -> list[Right]:
    """CDK takes on the roles of its bootstrap. Beside them, `deploy` does itself what no stack does."""
    return [
        Right(by=[*DEPLOYING, "secret"], actions=["sts:AssumeRole"], on=names.cdk_roles("deploy", "file-publishing")),
        Right(by=DEPLOYING, actions=["sts:AssumeRole"], on=names.cdk_roles("image-publishing")),
        Right(
            by=["deploy", *DESTROYING], actions=["ecr:BatchDeleteImage", "ecr:ListImages"], on=names.images
        ),
        Right(
            by=["deploy", *DESTROYING], actions=["ecr:DescribeRepositories"], on=[names.of("ecr", "repository/*")],
            why="A bootstrap may have named the repository otherwise.",
        ),
        Right(
            by=["deploy"], actions=["autoscaling:UpdateAutoScalingGroup"],
            on=names.groups(*names.installation.groups_of("train")), why=ID_OF_GROUP,
        ),
        Right(by=DEPLOYING, actions=["s3:GetLifecycleConfiguration"], on=[names.bucket], why=NAMED_BY_AWS),
        Right(by=["deploy"], actions=["s3:PutBucketVersioning", "s3:PutLifecycleConfiguration"], on=[names.bucket],
              why=NAMED_BY_AWS),
        Right(
            by=DEPLOYING, actions=["cloudformation:DeleteStack"],
            on=names.stacks(
                names.installation.storage_stack, names.installation.training_stack, names.installation.builder_stack
            ),
            why=NAMED_BY_AWS,
        ),
        Right(by=DEPLOYING, actions=["cloudformation:DescribeStackEvents"],
              on=names.stacks(names.installation.storage_stack), why=NAMED_BY_AWS),
        Right(by=DEPLOYING, actions=["codebuild:StartBuild"], on=names.project),
        Right(
            by=["deploy", *DESTROYING],
            actions=["codebuild:BatchGetBuilds", "codebuild:ListBuildsForProject", "codebuild:StopBuild"],
            on=names.project,
        ),
        Right(
            by=DEPLOYING, actions=["logs:GetLogEvents"],
            on=[names.of("logs", f"log-group:{names.installation.build_log_group}:*")], why="Each build has a stream.",
        ),
    ]  # fmt: skip


def handling(names: Names) -> list[Right]:
    """A shell on a machine, and the secret."""
    own = names.of("ssm", "session/${aws:userid}-*")
    return [
        Right(by=["secret"], actions=["secretsmanager:GetSecretValue", "secretsmanager:PutSecretValue"],
              on=names.secret[1:], why=SIX_LETTERS),
        Right(by=["shell"], actions=["ssm:StartSession"], on=[names.of("ec2", "instance/*")], condition=names.ours,
              why=ID),
        Right(by=["shell"], actions=["ssm:StartSession"], on=[names.of("ssm", "document/SSM-SessionManagerRunShell")]),
        # AWS's programs ask for these: its user guide of Session Manager, "Quickstart end user policies".
        Right(by=["shell"], actions=["ssm:ResumeSession", "ssm:TerminateSession", "ssmmessages:OpenDataChannel"],
              on=[own], why="A session is named after who has opened it."),
    ]  # fmt: skip
