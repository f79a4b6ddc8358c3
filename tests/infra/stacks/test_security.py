"""What can reach a machine, and cdk-nag's rules. What each role may do is in test_roles."""

from __future__ import annotations

import tempfile

import aws_cdk as cdk
import pytest
from aws_cdk import aws_iam as iam
from cdk_nag import AwsSolutionsChecks
from constructs import IConstruct

from infra.stacks import roles
from infra.stacks.permissions import Statement
from tests.infra.synthesized import VARIANTS, flat, new_app, stacks

pytestmark = pytest.mark.slow  # CDK runs in Node.js
NODES = "<NetworkNodesGroup.GroupId>"


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
    roles.role(cdk.Stack(app, "S"), "Role", principal, [Statement(actions=["s3:GetObject"], on=["*"])])
    assert findings(app) == {("S/Role/Resource", "AwsSolutions-IAM5[Resource::*]")}


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_rule_lets_anything_in_from_outside(variant: str) -> None:
    training = stacks(variant).training
    assert all("SecurityGroupIngress" not in group for group in training.all("EC2::SecurityGroup").values())
    assert "SecurityGroupIngress" not in training.one("EC2::SecurityGroup", "NetworkSecurityGroup")
    kinds = ("EC2::SecurityGroupIngress", "EC2::SecurityGroupEgress")
    rules = [flat(rule) for kind in kinds for rule in training.all(kind).values()]
    own = {"GroupId": NODES, "IpProtocol": "-1"}
    assert [{k: v for k, v in rule.items() if k != "Description"} for rule in rules] == (
        []
        if variant == "given"
        else [own | {"SourceSecurityGroupId": NODES}, own | {"DestinationSecurityGroupId": NODES}]
    )


@pytest.mark.parametrize("machine", ["Train", "Prepare"])
def test_a_machine_has_no_key_an_encrypted_disk_and_metadata_only_with_a_token(machine: str) -> None:
    data = stacks().training.one("EC2::LaunchTemplate", machine)["LaunchTemplateData"]
    assert "KeyName" not in data
    assert data["MetadataOptions"] == {
        "HttpEndpoint": "enabled",
        "HttpTokens": "required",
        "HttpPutResponseHopLimit": 1,
        "InstanceMetadataTags": "enabled",
    }
    (disk,) = data["BlockDeviceMappings"]
    assert disk["Ebs"]["Encrypted"] is True
    assert disk["Ebs"]["DeleteOnTermination"] is True


@pytest.mark.parametrize("variant", ["default", "given"])
def test_only_training_machines_of_an_installation_for_several_can_talk_to_each_other(variant: str) -> None:
    outward = "<NetworkSecurityGroup.GroupId>"
    for id, template in stacks(variant).training.all("EC2::LaunchTemplate").items():
        (interface,) = template["LaunchTemplateData"]["NetworkInterfaces"]
        alone = variant == "given" or id.startswith("Prepare")
        assert flat(interface["Groups"]) == ([outward] if alone else [outward, NODES])


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
