"""All that there is in an emulated account, by asking every service that an installation uses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tests.emulator.aws import Aws

# kind: service, operation that lists, key of the list in its answer, key of the name; "": the list is of names
LISTS = {
    "CloudFormation stack": ("cloudformation", "describe_stacks", "Stacks", "StackName"),
    "Auto Scaling group": ("autoscaling", "describe_auto_scaling_groups", "AutoScalingGroups", "AutoScalingGroupName"),
    "launch template": ("ec2", "describe_launch_templates", "LaunchTemplates", "LaunchTemplateId"),
    "volume": ("ec2", "describe_volumes", "Volumes", "VolumeId"),
    "network interface": ("ec2", "describe_network_interfaces", "NetworkInterfaces", "NetworkInterfaceId"),
    "address": ("ec2", "describe_addresses", "Addresses", "AllocationId"),
    "VPC": ("ec2", "describe_vpcs", "Vpcs", "VpcId"),
    "subnet": ("ec2", "describe_subnets", "Subnets", "SubnetId"),
    "route table": ("ec2", "describe_route_tables", "RouteTables", "RouteTableId"),
    "gateway": ("ec2", "describe_internet_gateways", "InternetGateways", "InternetGatewayId"),
    "endpoint": ("ec2", "describe_vpc_endpoints", "VpcEndpoints", "VpcEndpointId"),
    "security group": ("ec2", "describe_security_groups", "SecurityGroups", "GroupId"),
    "placement group": ("ec2", "describe_placement_groups", "PlacementGroups", "GroupName"),
    "role": ("iam", "list_roles", "Roles", "RoleName"),
    "policy": ("iam", "list_policies", "Policies", "PolicyName"),
    "instance profile": ("iam", "list_instance_profiles", "InstanceProfiles", "InstanceProfileName"),
    "log group": ("logs", "describe_log_groups", "logGroups", "logGroupName"),
    "function": ("lambda", "list_functions", "Functions", "FunctionName"),
    "rule": ("events", "list_rules", "Rules", "Name"),
    "schedule group": ("scheduler", "list_schedule_groups", "ScheduleGroups", "Name"),
    "schedule": ("scheduler", "list_schedules", "Schedules", "Name"),
    "topic": ("sns", "list_topics", "Topics", "TopicArn"),
    "subscription": ("sns", "list_subscriptions", "Subscriptions", "SubscriptionArn"),
    "alarm": ("cloudwatch", "describe_alarms", "MetricAlarms", "AlarmName"),
    "dashboard": ("cloudwatch", "list_dashboards", "DashboardEntries", "DashboardName"),
    "secret": ("secretsmanager", "list_secrets", "SecretList", "Name"),
    "parameter": ("ssm", "describe_parameters", "Parameters", "Name"),
    "S3 bucket": ("s3", "list_buckets", "Buckets", "Name"),
    "ECR repository": ("ecr", "describe_repositories", "repositories", "repositoryName"),
    "project": ("codebuild", "list_projects", "projects", ""),
}
# CloudFormation types that the lists show, or that live and die with what they show.
COVERED = {
    "AWS::AutoScaling::AutoScalingGroup", "AWS::CDK::Metadata", "AWS::CloudWatch::Alarm",
    "AWS::CodeBuild::Project", "AWS::EC2::InternetGateway",
    "AWS::EC2::LaunchTemplate", "AWS::EC2::Route", "AWS::EC2::RouteTable", "AWS::EC2::SecurityGroup",
    "AWS::EC2::PlacementGroup", "AWS::EC2::SecurityGroupEgress",
    "AWS::EC2::SecurityGroupIngress", "AWS::EC2::Subnet", "AWS::EC2::SubnetRouteTableAssociation", "AWS::EC2::VPC",
    "AWS::EC2::VPCEndpoint", "AWS::EC2::VPCGatewayAttachment", "AWS::Events::Rule", "AWS::IAM::InstanceProfile",
    "AWS::IAM::ManagedPolicy", "AWS::IAM::Policy", "AWS::IAM::Role", "AWS::Lambda::EventInvokeConfig",
    "AWS::Lambda::Function", "AWS::Lambda::Permission", "AWS::Logs::LogGroup", "AWS::S3::Bucket",
    "AWS::S3::BucketPolicy", "AWS::SNS::Subscription", "AWS::SNS::Topic", "AWS::SNS::TopicPolicy",
    "AWS::Scheduler::ScheduleGroup", "AWS::SecretsManager::Secret",
}  # fmt: skip


def inventory(aws: Aws) -> set[tuple[str, str]]:
    """(kind, name) of everything; of machines, those that are not terminated."""
    found = {
        (kind, str(entry[name] if name else entry))
        for kind, (service, operation, entries, name) in LISTS.items()
        for entry in listed(aws, service, operation, entries)
    }
    for reservation in listed(aws, "ec2", "describe_instances", "Reservations"):
        alive = [one for one in reservation["Instances"] if one["State"]["Name"] != "terminated"]
        found |= {("machine", one["InstanceId"]) for one in alive}
    for repository in listed(aws, "ecr", "describe_repositories", "repositories"):
        name = repository["repositoryName"]
        images = aws.client("ecr").list_images(repositoryName=name)["imageIds"]
        found |= {("ECR image", image["imageDigest"]) for image in images}
    return found


def listed(aws: Aws, service: str, operation: str, entries: str) -> Iterable[dict[str, Any]]:
    client = aws.client(service)
    arguments = {"Scope": "Local"} if operation == "list_policies" else {}
    if client.can_paginate(operation):
        pages = client.get_paginator(operation).paginate(**arguments)
        return [entry for page in pages for entry in page.get(entries) or []]
    return list(getattr(client, operation)(**arguments)[entries])
