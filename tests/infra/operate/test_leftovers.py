"""What an installation leaves, by AWS's own word: `destroy` finds it by tag and by name, and touches nothing else."""

from __future__ import annotations

import pytest

from infra.config import Installation
from infra.operate.installation import leftovers
from infra.operate.installation.left_over import tagged
from infra.operate.session import AwsError, ExitCode
from tests.emulator.aws import Aws
from tests.emulator.registry import Registry
from tests.infra.deployed import INSTALLATION, Deployed, client, push_image
from tests.infra.operate.strays import leave_everything
from tests.infra.operator import left, operate, operator

pytestmark = pytest.mark.usefixtures("quick_destroy")
ZERO = ExitCode.DONE


def test_resources_without_a_stack_are_found_by_tag_and_by_name_and_removed(
    deployed: Deployed, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed.launch()
    aws = deployed.aws
    operate("destroy")
    assert left() == []

    leave_everything(aws)
    ec2, logs = client(aws, "ec2"), client(aws, "logs")
    kinds = {
        "EBS volume, 8 GiB, available", "network interface", "VPC", "subnet", "internet gateway", "launch template",
        "EC2 instance, running", "log group", "schedule group", "SNS topic", "EventBridge rule", "CloudWatch alarm",
        "Auto Scaling group", "Lambda function", "VPC endpoint", "route table", "security group",
    }  # fmt: skip
    assert kinds <= set(left())
    capsys.readouterr()
    assert operate("destroy") == ZERO
    assert left() == []
    assert [group["logGroupName"] for group in logs.describe_log_groups()["logGroups"]] == [
        f"{INSTALLATION.log_group}-of-somebody-else"
    ]
    assert len(ec2.describe_vpcs()["Vpcs"]) == 1  # the account's own


def test_what_guardduty_and_others_have_put_into_our_vpc_is_named_with_its_owner_and_not_deleted(
    deployed: Deployed, capsys: pytest.CaptureFixture[str]
) -> None:
    ec2 = client(deployed.aws, "ec2")
    (vpc,) = (one["VpcId"] for one in ec2.describe_vpcs(Filters=tagged(INSTALLATION))["Vpcs"])
    managed = [{"Key": "GuardDutyManaged", "Value": "true"}]
    endpoint = ec2.create_vpc_endpoint(
        VpcId=vpc, ServiceName="com.amazonaws.us-east-1.guardduty-data", VpcEndpointType="Interface",
        TagSpecifications=[{"ResourceType": "vpc-endpoint", "Tags": managed}],
    )["VpcEndpoint"]["VpcEndpointId"]  # fmt: skip
    guard = ec2.create_security_group(VpcId=vpc, GroupName=f"GuardDutyManagedSecurityGroup-{vpc}", Description="x")
    mine = ec2.create_security_group(VpcId=vpc, GroupName="mine", Description="x")
    assert operate("destroy") == ExitCode.LEFT_OVERS
    said = capsys.readouterr().out
    first, _, table = (" ".join(part.split()) for part in said.partition("left over:"))
    delete = f"aws ec2 delete-vpc-endpoints --vpc-endpoint-ids {endpoint}"
    assert f"VPC endpoint in our VPC, of GuardDuty: the VPC cannot go before it: {delete}" in first
    assert f"VPC endpoint in our VPC, of GuardDuty {endpoint} {delete}" in table
    assert f"security group in our VPC, of GuardDuty {guard['GroupId']}" in table
    assert f"security group in our VPC, which this project did not make {mine['GroupId']}" in table
    ec2.delete_vpc_endpoints(VpcEndpointIds=[endpoint])
    for group in (guard, mine):
        ec2.delete_security_group(GroupId=group["GroupId"])
    assert operate("destroy") == ZERO
    assert left() == []


def test_names_that_cloudformation_had_to_shorten_are_found_by_their_tag(aws: Aws) -> None:
    """As it does with a name of 24 letters: stack and logical id are cut, and another's name may begin as ours."""
    ours = Installation(name="a-name-of-24-letters-abc")
    shortened = f"{ours.training_stack[:26]}-PrepareMachineRoleWithALo-1ABCDEFGHIJ"
    assert len(shortened) >= 58
    iam, events = client(aws, "iam"), client(aws, "events")
    for end, owner in (("K", ours.name), ("L", "a-name-of-24-letters-abd")):
        tags = [{"Key": "resnet-spot", "Value": owner}]
        iam.create_role(RoleName=shortened + end, AssumeRolePolicyDocument="{}", Tags=tags)
        events.put_rule(Name=shortened + end, ScheduleExpression="rate(1 minute)", Tags=tags)
    found = leftovers.find(operator(), ours)
    assert [(one.service, one.id) for one in found] == [
        ("EventBridge rule", f"{shortened}K"), ("IAM role", f"{shortened}K"),
    ]  # fmt: skip


def test_what_only_hands_can_remove_is_in_the_table(deployed: Deployed, capsys: pytest.CaptureFixture[str]) -> None:
    role = f"{INSTALLATION.training_stack}-TrainRole-A1B2"
    client(deployed.aws, "iam").create_role(RoleName=role, AssumeRolePolicyDocument="{}")
    assert operate("destroy") == ExitCode.LEFT_OVERS
    assert f"IAM role  {role}  aws iam delete-role --role-name {role}" in capsys.readouterr().out


def test_an_image_whose_stack_is_gone_already_is_found_by_its_tag(deployed: Deployed, registry: Registry) -> None:
    deployed.aws.set(registry=registry.host)
    operate("destroy")
    push_image(registry)
    assert left() == ["ECR image"]
    assert operate("destroy") == ZERO
    assert deployed.images() == 0


def test_another_installations_things_are_not_touched(deployed: Deployed) -> None:
    other = Installation(name="other")
    ec2 = client(deployed.aws, "ec2")
    ec2.run_instances(
        ImageId="ami-12345678", MinCount=1, MaxCount=1,
        TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "resnet-spot", "Value": "other"}]}],
    )  # fmt: skip
    client(deployed.aws, "logs").create_log_group(logGroupName=other.log_group)
    sequel = Installation(name="resnet-spot-training-2")  # its names begin as ours do
    client(deployed.aws, "sns").create_topic(Name=f"{sequel.training_stack}-Topic-A1B2")
    client(deployed.aws, "s3").create_bucket(Bucket="resnet-spot-storage-of-mine")
    assert operate("destroy", "--purge", "--yes") == ZERO
    assert left(other) == ["EC2 instance, running", "log group"]
    assert left(sequel) == ["SNS topic"]
    assert [b["Name"] for b in client(deployed.aws, "s3").list_buckets()["Buckets"]] == ["resnet-spot-storage-of-mine"]


def test_a_service_that_cannot_be_asked_is_not_taken_for_empty(deployed: Deployed) -> None:
    deployed.aws.fault("lambda.GetFunction", "AccessDeniedException", status=403)
    with pytest.raises(AwsError, match=r"what is left: functions: AWS refused .*administrator"):
        operate("destroy")


def test_there_is_nothing_that_the_stack_makes_and_nobody_asks_for(deployed: Deployed) -> None:
    """Each resource of the small stack is one that `find` lists, but the schedules' group's schedules, and a role that
    was given its name, with its instance profile.
    """
    operator_groups = left()
    resources = client(deployed.aws, "cloudformation").list_stack_resources(StackName=INSTALLATION.training_stack)
    kinds = {resource["ResourceType"] for resource in resources["StackResourceSummaries"]}
    named = {
        "AWS::EC2::PlacementGroup": "placement group", "AWS::EC2::VPC": "VPC",
        "AWS::EC2::Subnet": "subnet", "AWS::EC2::LaunchTemplate": "launch template",
        "AWS::AutoScaling::AutoScalingGroup": "Auto Scaling group", "AWS::Logs::LogGroup": "log group",
        "AWS::Scheduler::ScheduleGroup": "schedule group", "AWS::SNS::Topic": "SNS topic",
    }  # fmt: skip
    assert {named[kind] for kind in kinds if not kind.startswith("AWS::IAM::")} <= set(operator_groups)
