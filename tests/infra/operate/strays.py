"""Everything that a stack of ours can leave, without its stack."""

from __future__ import annotations

from typing import Any

from tests.emulator.aws import Aws
from tests.infra.deployed import INSTALLATION, client, tags
from tests.infra.operate.builder import BUCKET, SOURCE, put_source

STACK = INSTALLATION.training_stack
FUNCTION_ARN = "arn:aws:lambda:us-east-1:123456789012:function:x"


def tagged_as(kind: str) -> list[dict[str, Any]]:
    return [{"ResourceType": kind, "Tags": tags()}]


def leave_everything(aws: Aws) -> None:
    """Also a log group, a rule and a role of somebody else, whose names begin like ours."""
    leave_a_network(aws)
    leave_machines(aws)
    leave_a_builder(aws)
    logs, events, iam = client(aws, "logs"), client(aws, "events"), client(aws, "iam")
    for name in (INSTALLATION.log_group, INSTALLATION.build_log_group, f"/aws/lambda/{INSTALLATION.guard_function}",
                 f"{INSTALLATION.log_group}-of-somebody-else"):  # fmt: skip
        logs.create_log_group(logGroupName=name)
    client(aws, "scheduler").create_schedule_group(Name=INSTALLATION.schedule_group)
    client(aws, "sns").create_topic(Name=f"{STACK}-Topic-A1B2")
    events.put_rule(Name=f"{STACK}-Rule-A1B2", ScheduleExpression="rate(1 minute)")
    events.put_targets(Rule=f"{STACK}-Rule-A1B2", Targets=[{"Id": "1", "Arn": FUNCTION_ARN}])
    client(aws, "cloudwatch").put_metric_alarm(
        AlarmName=f"{STACK}-Silent-A1B2", MetricName="Errors", Namespace="AWS/Lambda", Period=60, EvaluationPeriods=1,
        Threshold=1, ComparisonOperator="GreaterThanThreshold", Statistic="Sum",
    )  # fmt: skip
    cut = f"{STACK}-of-somebody-else".ljust(64, "x")  # it may be ours, and its tags tell that it is not
    events.put_rule(Name=cut, ScheduleExpression="rate(1 minute)")
    iam.create_role(RoleName=cut, AssumeRolePolicyDocument="{}")
    role = iam.create_role(RoleName="of-the-function", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    client(aws, "lambda").create_function(
        FunctionName=INSTALLATION.guard_function, Runtime="python3.12", Role=role, Handler="a.b", Code={"ZipFile": b"x"}
    )


def leave_a_builder(aws: Aws) -> None:
    put_source(aws)
    client(aws, "codebuild").create_project(
        name=INSTALLATION.build_project, serviceRole="arn:aws:iam::123456789012:role/of-the-builder",
        source={"type": "S3", "location": f"{BUCKET}/{SOURCE}"}, artifacts={"type": "NO_ARTIFACTS"},
        environment={"type": "LINUX_CONTAINER", "image": "none", "computeType": "BUILD_GENERAL1_SMALL"},
    )  # fmt: skip


def leave_a_network(aws: Aws) -> None:
    ec2 = client(aws, "ec2")
    subnet = ec2.describe_subnets()["Subnets"][0]["SubnetId"]
    ec2.create_network_interface(SubnetId=subnet, TagSpecifications=tagged_as("network-interface"))
    vpc = ec2.create_vpc(CidrBlock="10.1.0.0/16", TagSpecifications=tagged_as("vpc"))["Vpc"]["VpcId"]
    ec2.create_subnet(VpcId=vpc, CidrBlock="10.1.0.0/24", TagSpecifications=tagged_as("subnet"))
    gateway = ec2.create_internet_gateway(TagSpecifications=tagged_as("internet-gateway"))["InternetGateway"]
    ec2.attach_internet_gateway(VpcId=vpc, InternetGatewayId=gateway["InternetGatewayId"])
    ec2.create_route_table(VpcId=vpc, TagSpecifications=tagged_as("route-table"))
    ec2.create_security_group(
        VpcId=vpc, GroupName="of-machines", Description="none", TagSpecifications=tagged_as("security-group")
    )
    ec2.create_vpc_endpoint(
        VpcId=vpc, ServiceName="com.amazonaws.us-east-1.logs", VpcEndpointType="Interface",
        TagSpecifications=tagged_as("vpc-endpoint"),
    )  # fmt: skip


def leave_machines(aws: Aws) -> None:
    ec2 = client(aws, "ec2")
    ec2.create_volume(AvailabilityZone="us-east-1a", Size=8, TagSpecifications=tagged_as("volume"))
    ec2.create_launch_template(
        LaunchTemplateName="old", LaunchTemplateData={"ImageId": "ami-12345678"},
        TagSpecifications=tagged_as("launch-template"),
    )  # fmt: skip
    ec2.run_instances(ImageId="ami-12345678", MinCount=1, MaxCount=1, TagSpecifications=tagged_as("instance"))
    ec2.create_placement_group(
        GroupName="of-nodes", Strategy="cluster", TagSpecifications=tagged_as("placement-group")
    )  # fmt: skip
    ec2.create_placement_group(GroupName="of-somebody-else", Strategy="cluster")
    for group in INSTALLATION.groups:
        client(aws, "autoscaling").create_auto_scaling_group(
            AutoScalingGroupName=group, LaunchTemplate={"LaunchTemplateName": "old", "Version": "1"},
            MinSize=0, MaxSize=1, AvailabilityZones=["us-east-1a"],
        )  # fmt: skip
