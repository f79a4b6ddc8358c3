"""Who may do what and what can reach a machine: cdk-nag's rules, every statement of every role, the machines' walls."""

from __future__ import annotations

import tempfile
from typing import Any

import aws_cdk as cdk
import pytest
from aws_cdk import aws_iam as iam
from cdk_nag import AwsSolutionsChecks
from constructs import IConstruct

from infra.stacks import roles
from tests.infra.synthesized import VARIANTS, flat, new_app, stacks

pytestmark = pytest.mark.slow  # CDK runs in Node.js
ACCOUNT = "<AWS::Region>:<AWS::AccountId>"


def findings(app: cdk.App) -> set[tuple[str | None, str]]:
    """(construct, rule) of all that cdk-nag finds."""
    report = AwsSolutionsChecks(app).validate_scope(app)
    return {
        (resource.construct_path, violation.rule_name)
        for violation in report.violations
        for resource in violation.violating_resources
    }


class Recorder:
    """Stands in for `cdk.Validations`: notes each acknowledgement and lets the finding through."""

    def __init__(self) -> None:
        self.noted: list[tuple[str, str]] = []
        self.reasons: list[str] = []

    def of(self, construct: IConstruct) -> Recorder:
        self.path = construct.node.path
        return self

    def acknowledge(self, *given: cdk.Acknowledgment) -> None:
        self.noted += [(self.path, acknowledgment.id) for acknowledgment in given]
        self.reasons += [acknowledgment.reason for acknowledgment in given]


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_each_finding_of_cdk_nag_is_acknowledged_on_its_construct_and_each_acknowledgement_is_needed(
    variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    monkeypatch.setattr(cdk, "Validations", recorder)
    with tempfile.TemporaryDirectory() as folder:
        found = findings(new_app(variant, folder))
    assert found == set(recorder.noted)
    assert all(len(reason) > 20 for reason in recorder.reasons)


def test_with_the_acknowledgements_cdk_nag_finds_nothing() -> None:
    with tempfile.TemporaryDirectory() as folder:
        assert findings(new_app("default", folder)) == set()


def test_a_wildcard_without_a_reason_is_a_finding() -> None:
    app = cdk.App()
    principal = iam.ServicePrincipal("ec2.amazonaws.com")
    roles.role(cdk.Stack(app, "S"), "Role", principal, [roles.Allow(actions=["s3:GetObject"], on=["*"])])
    assert findings(app) == {("S/Role/Resource", "AwsSolutions-IAM5[Resource::*]")}


GROUP = "arn:<AWS::Partition>:autoscaling:" + ACCOUNT + ":autoScalingGroup:*:autoScalingGroupName/resnet-spot-"
REPOSITORY = (
    "arn:<AWS::Partition>:ecr:" + ACCOUNT + ":repository/"
    "cdk-hnb659fds-container-assets-${AWS::AccountId}-${AWS::Region}"
)  # fmt: skip
PULL = [
    (["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"], [REPOSITORY]),
    (["ecr:GetAuthorizationToken"], ["*"]),
]


def of_every_machine(kind: str, pull: list[Any]) -> list[Any]:
    return [
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
        (["autoscaling:SetDesiredCapacity", "autoscaling:TerminateInstanceInAutoScalingGroup"], [GROUP + kind]),
    ]


def prefixes(*names: str) -> dict[str, Any]:
    return {"StringLike": {"s3:prefix": [*names]}}


def training(pull: list[Any]) -> list[Any]:
    return [
        (["s3:ListBucket"], ["BUCKET"], prefixes("datasets/*", "runs/*", "checkpoints/*")),
        (["s3:GetObject"], ["BUCKET/datasets/*", "BUCKET/runs/*", "BUCKET/checkpoints/*"]),
        (["s3:PutObject"], ["BUCKET/runs/*", "BUCKET/checkpoints/*"]),
        (["s3:PutObjectTagging", "s3:AbortMultipartUpload"], ["BUCKET/checkpoints/*"]),
        (["s3:ListBucketMultipartUploads"], ["BUCKET"]),
        *of_every_machine("train", pull),
    ]


PREPARE = [
    (["s3:ListBucket"], ["BUCKET"], prefixes("datasets/*", "runs/prepare-*")),
    (["s3:GetObject"], ["BUCKET/datasets/*", "BUCKET/runs/prepare-*/*"]),
    (["s3:PutObject"], ["BUCKET/datasets/*", "BUCKET/runs/prepare-*/*"]),
    *of_every_machine("prepare", PULL),
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
        ["autoscaling:SetDesiredCapacity", "autoscaling:UpdateAutoScalingGroup"],
        [GROUP + "train", GROUP + "prepare"],
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
SCHEDULER = [(["autoscaling:UpdateAutoScalingGroup"], [GROUP + "train", GROUP + "prepare"])]


def statements(role: dict[str, Any]) -> list[Any]:
    """(actions, resources), or (actions, resources, condition), of all that the role allows."""
    (policy,) = role["Policies"]
    found = []
    for statement in policy["PolicyDocument"]["Statement"]:
        assert statement.keys() <= {"Effect", "Action", "Resource", "Condition"}
        assert statement["Effect"] == "Allow"
        actions, resources = (
            value if isinstance(value, list) else [value]
            for value in map(flat, (statement["Action"], statement["Resource"]))
        )
        found.append((actions, resources, *([flat(statement["Condition"])] if "Condition" in statement else [])))
    return found


@pytest.mark.parametrize(
    ("role", "service", "allowed"),
    [
        ("TrainRole", "ec2", training(PULL)),
        ("PrepareRole", "ec2", PREPARE),
        ("GuardRole", "lambda", GUARD),
        ("StopSchedulesRole", "scheduler", SCHEDULER),
    ],
)
def test_a_role_may_do_exactly_this(role: str, service: str, allowed: list[Any]) -> None:
    found = stacks().training.one("IAM::Role", role)
    assert statements(found) == allowed
    (trust,) = found["AssumeRolePolicyDocument"]["Statement"]
    assert (trust["Effect"], trust["Action"]) == ("Allow", "sts:AssumeRole")
    assert trust["Principal"] == {"Service": f"{service}.amazonaws.com"}


def test_no_role_has_more_than_its_own_statements_and_there_is_no_other_role() -> None:
    for variant in VARIANTS:
        found = stacks(variant)
        assert not found.storage.all("IAM::Role")
        assert len(found.training.all("IAM::Role")) == 4
        for name, role in found.training.all("IAM::Role").items():
            assert role.keys() <= {"AssumeRolePolicyDocument", "Policies", "Tags", "Description"}, name
        assert not found.training.all("IAM::Policy")
        assert not found.training.all("IAM::ManagedPolicy")


def test_a_stop_schedule_takes_on_its_role_only_from_its_own_group() -> None:
    (trust,) = stacks().training.one("IAM::Role", "StopSchedulesRole")["AssumeRolePolicyDocument"]["Statement"]
    assert flat(trust["Condition"]) == {
        "StringEquals": {"aws:SourceAccount": "<AWS::AccountId>", "aws:SourceArn": "<StopSchedulesGroup.Arn>"}
    }


def test_the_pull_of_a_given_image_is_allowed_from_its_one_repository() -> None:
    given = "arn:<AWS::Partition>:ecr:eu-west-1:123456789012:repository/team/trainer"
    role = stacks("given").training.one("IAM::Role", "TrainRole")
    assert statements(role) == training([(PULL[0][0], [given]), PULL[1]])


def test_an_image_that_is_not_in_ecr_needs_no_permission() -> None:
    assert statements(stacks("image from elsewhere").training.one("IAM::Role", "TrainRole")) == training([])


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_rule_lets_anything_in_from_outside(variant: str) -> None:
    training = stacks(variant).training
    group = training.one("EC2::SecurityGroup")
    assert "SecurityGroupIngress" not in group
    rules = [flat(rule) for rule in training.all("EC2::SecurityGroupIngress").values()]
    own = "<NetworkSecurityGroup.GroupId>"
    between_nodes = {"GroupId": own, "SourceSecurityGroupId": own, "IpProtocol": "-1"}
    assert [{k: v for k, v in rule.items() if k != "Description"} for rule in rules] == (
        [between_nodes] if variant == "changed" else []
    )


@pytest.mark.parametrize("machine", ["Train", "Prepare"])
def test_a_machine_has_no_key_an_encrypted_disk_and_metadata_only_with_a_token(machine: str) -> None:
    data = stacks().training.one("EC2::LaunchTemplate", machine)["LaunchTemplateData"]
    assert "KeyName" not in data
    assert data["MetadataOptions"] == {
        "HttpTokens": "required",
        "HttpPutResponseHopLimit": 2,
        "InstanceMetadataTags": "enabled",
    }
    (disk,) = data["BlockDeviceMappings"]
    assert disk["Ebs"]["Encrypted"] is True
    assert disk["Ebs"]["DeleteOnTermination"] is True


def test_every_machine_is_in_the_one_security_group() -> None:
    for template in stacks().training.all("EC2::LaunchTemplate").values():
        (interface,) = template["LaunchTemplateData"]["NetworkInterfaces"]
        assert flat(interface["Groups"]) == ["<NetworkSecurityGroup.GroupId>"]


def test_the_secret_is_created_empty() -> None:
    secret = stacks().storage.one("SecretsManager::Secret")
    assert secret["Name"] == "resnet-spot/hf-token"
    assert secret.keys() <= {"Name", "Description", "Tags"}


def test_nobody_publishes_to_the_topic_without_tls() -> None:
    refused, alarms = stacks().training.one("SNS::TopicPolicy")["PolicyDocument"]["Statement"]
    assert refused["Effect"] == "Deny"
    assert refused["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    assert alarms["Principal"] == {"Service": "cloudwatch.amazonaws.com"}
    assert flat(alarms["Condition"]) == {"StringEquals": {"aws:SourceAccount": "<AWS::AccountId>"}}
