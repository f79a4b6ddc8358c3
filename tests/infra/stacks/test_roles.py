"""Who may do what: every statement of every role, whole, as CloudFormation gets it. What follows from them for a key is
in test_walls."""

from __future__ import annotations

from typing import Any

import pytest

from tests.infra.synthesized import VARIANTS, flat, stacks

pytestmark = pytest.mark.slow  # CDK runs in Node.js
ACCOUNT = "<AWS::Region>:<AWS::AccountId>"
GROUP = "arn:<AWS::Partition>:autoscaling:" + ACCOUNT + ":autoScalingGroup:*:autoScalingGroupName/resnet-spot-"
GROUPS = {"train": [GROUP + "train", GROUP + "on-demand"], "prepare": [GROUP + "prepare"]}
REPOSITORY = (
    "arn:<AWS::Partition>:ecr:" + ACCOUNT + ":repository/"
    "cdk-hnb659fds-container-assets-${AWS::AccountId}-${AWS::Region}"
)  # fmt: skip
PULL = [
    (["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"], [REPOSITORY]),
    (["ecr:GetAuthorizationToken"], ["*"]),
]
NO_CONTROL = (
    "Deny",
    ["s3:PutObject", "s3:PutObjectTagging", "s3:DeleteObject", "s3:DeleteObjectVersion"],
    ["BUCKET/runs/*/spec.json", "BUCKET/runs/*/spend.json", "BUCKET/runs/*/guard.json"],
)

STANDARD_STORAGE = (
    "Deny",
    ["s3:PutObject"],
    ["BUCKET/*"],
    {"Null": {"s3:x-amz-storage-class": "false"}, "StringNotEquals": {"s3:x-amz-storage-class": "STANDARD"}},
)


def of_every_machine(kind: str, pull: list[Any]) -> list[Any]:
    return [
        NO_CONTROL,
        STANDARD_STORAGE,
        (["secretsmanager:GetSecretValue"], ["SECRET"]),
        *pull,
        (["logs:CreateLogStream", "logs:PutLogEvents"], ["<RunLogs.Arn>"]),
        (
            [
                "ssm:UpdateInstanceInformation",
                "ssmmessages:CreateControlChannel",
                "ssmmessages:CreateDataChannel",
                "ssmmessages:OpenControlChannel",
                "ssmmessages:OpenDataChannel",
            ],
            ["*"],
        ),
        (["autoscaling:SetDesiredCapacity", "autoscaling:TerminateInstanceInAutoScalingGroup"], GROUPS[kind]),
    ]


def prefixes(*names: str) -> dict[str, Any]:
    return {"StringLike": {"s3:prefix": [*names]}}


def training_machine(pull: list[Any]) -> list[Any]:
    return [
        (["s3:ListBucket"], ["BUCKET"], prefixes("runs/*", "checkpoints/*")),
        (
            ["s3:GetObject"],
            [
                "BUCKET/runs/*/spec.json",
                "BUCKET/runs/*/done.json",
                "BUCKET/runs/*/failed.json",
                "BUCKET/checkpoints/*/HEAD.json",
            ],
        ),
        (["s3:PutObject"], ["BUCKET/runs/*/failed.json"]),
        *of_every_machine("train", pull),
    ]


TRAINING_RUN = [
    (["s3:ListBucket"], ["BUCKET"], prefixes("datasets/*", "runs/*", "checkpoints/*")),
    (["s3:GetObject"], ["BUCKET/datasets/*", "BUCKET/runs/*", "BUCKET/checkpoints/*"]),
    (["s3:PutObject"], ["BUCKET/runs/*", "BUCKET/checkpoints/*"]),
    (["s3:PutObjectTagging"], ["BUCKET/checkpoints/*"]),
    (["s3:AbortMultipartUpload"], ["BUCKET/runs/*", "BUCKET/checkpoints/*"]),
    (["s3:ListBucketMultipartUploads"], ["BUCKET"]),
    NO_CONTROL,
    STANDARD_STORAGE,
]
PREPARATION_MACHINE = [
    (["s3:ListBucket"], ["BUCKET"], prefixes("runs/prepare-*")),
    (
        ["s3:GetObject"],
        [
            "BUCKET/runs/prepare-*/spec.json",
            "BUCKET/runs/prepare-*/done.json",
            "BUCKET/runs/prepare-*/failed.json",
        ],
    ),
    (["s3:PutObject"], ["BUCKET/runs/prepare-*/failed.json"]),
    *of_every_machine("prepare", PULL),
]
PREPARATION_RUN = [
    (["s3:ListBucket"], ["BUCKET"], prefixes("datasets/*", "runs/prepare-*")),
    (["s3:GetObject"], ["BUCKET/datasets/*", "BUCKET/runs/prepare-*/*"]),
    (["s3:PutObject"], ["BUCKET/runs/prepare-*/*"]),
    (["s3:PutObject"], ["BUCKET/datasets/*"], {"Null": {"s3:if-none-match": "false"}}),
    (["s3:PutObject"], ["BUCKET/datasets/*"], {"Bool": {"s3:ObjectCreationOperation": "false"}}),
    (["s3:AbortMultipartUpload"], ["BUCKET/datasets/*", "BUCKET/runs/prepare-*/*"]),
    NO_CONTROL,
    STANDARD_STORAGE,
]
GUARD = [
    (
        [
            "ec2:DescribeInstances",
            "ec2:DescribeSpotPriceHistory",
            "autoscaling:DescribeAutoScalingGroups",
            "autoscaling:DescribeScalingActivities",
        ],
        ["*"],
    ),
    (
        [
            "autoscaling:SetDesiredCapacity",
            "autoscaling:TerminateInstanceInAutoScalingGroup",
            "autoscaling:UpdateAutoScalingGroup",
        ],
        [*GROUPS["train"], *GROUPS["prepare"]],
    ),
    (
        ["ec2:TerminateInstances"],
        [f"arn:<AWS::Partition>:ec2:{ACCOUNT}:instance/*"],
        {"StringEquals": {"aws:ResourceTag/resnet-spot": "resnet-spot"}},
    ),
    (["scheduler:DeleteSchedule"], [f"arn:<AWS::Partition>:scheduler:{ACCOUNT}:schedule/resnet-spot/*"]),
    (["s3:ListBucket"], ["BUCKET"], prefixes("runs/*", "checkpoints/*")),
    (["s3:GetObject"], ["BUCKET/runs/*", "BUCKET/checkpoints/*/HEAD.json"]),
    (["s3:PutObject"], ["BUCKET/runs/*/spend.json", "BUCKET/runs/*/guard.json"]),
    (["sns:Publish"], ["<Topic>"]),
    (["logs:CreateLogStream", "logs:PutLogEvents"], ["<GuardLogs.Arn>"]),
]
SCHEDULER = [(["autoscaling:SetDesiredCapacity"], [*GROUPS["train"], *GROUPS["prepare"]])]


def statements(role: dict[str, Any]) -> list[Any]:
    """(actions, resources), or with a condition behind or "Deny" before them, of all that the role says."""
    (policy,) = role["Policies"]
    found = []
    for statement in policy["PolicyDocument"]["Statement"]:
        assert statement.keys() <= {"Effect", "Action", "Resource", "Condition"}
        actions, resources = (
            value if isinstance(value, list) else [value]
            for value in map(flat, (statement["Action"], statement["Resource"]))
        )
        effect = [] if statement["Effect"] == "Allow" else [statement["Effect"]]
        condition = [flat(statement["Condition"])] if "Condition" in statement else []
        found.append((*effect, actions, resources, *condition))
    return found


@pytest.mark.parametrize(
    ("role", "trusted", "said"),
    [
        ("TrainRole", {"Service": "ec2.amazonaws.com"}, training_machine(PULL)),
        ("PrepareRole", {"Service": "ec2.amazonaws.com"}, PREPARATION_MACHINE),
        ("TrainRunRole", {"AWS": "<TrainRole.Arn>"}, TRAINING_RUN),
        ("PrepareRunRole", {"AWS": "<PrepareRole.Arn>"}, PREPARATION_RUN),
        ("GuardRole", {"Service": "lambda.amazonaws.com"}, GUARD),
        ("StopSchedulesRole", {"Service": "scheduler.amazonaws.com"}, SCHEDULER),
    ],
)
def test_a_role_may_do_exactly_this(role: str, trusted: dict[str, str], said: list[Any]) -> None:
    found = stacks().training.one("IAM::Role", role)
    assert statements(found) == said
    (trust,) = found["AssumeRolePolicyDocument"]["Statement"]
    assert (trust["Effect"], trust["Action"]) == ("Allow", "sts:AssumeRole")
    assert flat(trust["Principal"]) == trusted


def test_no_role_has_more_than_its_own_statements_and_there_is_no_other_role() -> None:
    for variant in VARIANTS:
        found = stacks(variant)
        assert not found.storage.all("IAM::Role")
        assert len(found.training.all("IAM::Role")) == 6
        for name, role in found.training.all("IAM::Role").items():
            assert role.keys() <= {"AssumeRolePolicyDocument", "Policies", "Tags", "Description"}, name
        assert len(found.training.all("IAM::Policy")) == 2  # of the next test
        assert not found.training.all("IAM::ManagedPolicy")


@pytest.mark.parametrize("kind", ["Train", "Prepare"])
def test_a_machine_takes_on_the_role_of_its_runs_and_no_other(kind: str) -> None:
    training = stacks().training
    policy = flat(training.one("IAM::Policy", f"{kind}RunAssume"))
    (statement,) = policy["PolicyDocument"]["Statement"]
    assert statement == {"Effect": "Allow", "Action": "sts:AssumeRole", "Resource": f"<{kind}RunRole.Arn>"}
    assert policy["Roles"] == [f"<{kind}Role>"]
    assert policy.keys() == {"PolicyName", "PolicyDocument", "Roles"}
    resources = training.template["Resources"]
    (group,) = [found for id, found in resources.items() if id.startswith(f"{kind}Group")]
    assert any(name.startswith(f"{kind}RunAssume") for name in group["DependsOn"])


def test_a_stop_schedule_takes_on_its_role_only_from_its_own_group() -> None:
    (trust,) = stacks().training.one("IAM::Role", "StopSchedulesRole")["AssumeRolePolicyDocument"]["Statement"]
    assert flat(trust["Condition"]) == {
        "StringEquals": {"aws:SourceAccount": "<AWS::AccountId>", "aws:SourceArn": "<StopSchedulesGroup.Arn>"}
    }


def test_the_pull_of_a_given_image_is_allowed_from_its_one_repository() -> None:
    given = "arn:<AWS::Partition>:ecr:eu-west-1:123456789012:repository/team/trainer"
    role = stacks("given").training.one("IAM::Role", "TrainRole")
    assert statements(role) == training_machine([(PULL[0][0], [given]), PULL[1]])


def test_an_image_that_is_not_in_ecr_needs_no_permission() -> None:
    assert statements(stacks("image from elsewhere").training.one("IAM::Role", "TrainRole")) == training_machine([])
