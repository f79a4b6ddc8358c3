"""The AWS emulator itself: that the gaps which tests/emulator/aws.py says are closed are."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import Any

import boto3
import botocore.exceptions
import pytest
from botocore.config import Config

from tests.emulator.aws import Aws

GROUP = "fleet"
TYPES = ["g6.xlarge", "g5.xlarge"]


@pytest.fixture
def autoscaling(aws: Aws) -> Any:
    """A client; there is a group of spot machines in one subnet, with no machine."""
    ec2 = aws.client("ec2")
    template = ec2.create_launch_template(LaunchTemplateName="t", LaunchTemplateData={"ImageId": "ami-12345678"})
    subnet = ec2.describe_subnets(Filters=[{"Name": "availability-zone", "Values": ["us-east-1b"]}])["Subnets"][0]
    client = aws.client("autoscaling")
    client.create_auto_scaling_group(
        AutoScalingGroupName=GROUP, MinSize=0, MaxSize=2, DesiredCapacity=0, VPCZoneIdentifier=subnet["SubnetId"],
        Tags=[{"Key": "run", "Value": "r1", "PropagateAtLaunch": True, "ResourceId": GROUP,
               "ResourceType": "auto-scaling-group"}],
        MixedInstancesPolicy={
            "LaunchTemplate": {
                "LaunchTemplateSpecification": {
                    "LaunchTemplateId": template["LaunchTemplate"]["LaunchTemplateId"], "Version": "1",
                },
                "Overrides": [{"InstanceType": name} for name in TYPES],
            },
            "InstancesDistribution": {"OnDemandBaseCapacity": 0, "OnDemandPercentageAboveBaseCapacity": 0},
        },
    )  # fmt: skip
    return client


def machines(aws: Aws) -> list[tuple[str, str, str, str]]:
    """Type, market, zone, state."""
    return [
        (i["InstanceType"], i.get("InstanceLifecycle", ""), i["Placement"]["AvailabilityZone"], i["State"]["Name"])
        for r in aws.client("ec2").describe_instances()["Reservations"]
        for i in r["Instances"]
    ]


def activities(autoscaling: Any) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = autoscaling.describe_scaling_activities(AutoScalingGroupName=GROUP)["Activities"]
    return told


def test_a_group_gets_machines_of_its_first_type_in_its_market(aws: Aws, autoscaling: Any) -> None:
    autoscaling.set_desired_capacity(AutoScalingGroupName=GROUP, DesiredCapacity=1)
    assert machines(aws) == [("g6.xlarge", "spot", "us-east-1b", "running")]
    assert activities(autoscaling)[0]["Description"].startswith("Launching a new EC2 instance: i-")

    autoscaling.update_auto_scaling_group(
        AutoScalingGroupName=GROUP,
        MixedInstancesPolicy={"InstancesDistribution": {"OnDemandPercentageAboveBaseCapacity": 100}},
    )
    autoscaling.set_desired_capacity(AutoScalingGroupName=GROUP, DesiredCapacity=2)
    assert machines(aws)[1] == ("g6.xlarge", "", "us-east-1b", "running")

    autoscaling.update_auto_scaling_group(AutoScalingGroupName=GROUP, MinSize=0, DesiredCapacity=0)
    assert [state for *_, state in machines(aws)] == ["terminated"] * 2
    (group,) = autoscaling.describe_auto_scaling_groups()["AutoScalingGroups"]
    kept = group["MixedInstancesPolicy"]["LaunchTemplate"]["Overrides"]
    assert [override["InstanceType"] for override in kept] == TYPES


def test_a_group_may_not_want_more_than_its_maximum(autoscaling: Any) -> None:
    with pytest.raises(botocore.exceptions.ClientError, match="must be between"):
        autoscaling.set_desired_capacity(AutoScalingGroupName=GROUP, DesiredCapacity=3)


def test_a_planned_launch_failure_is_an_activity_and_ends_when_it_is_lifted(aws: Aws, autoscaling: Any) -> None:
    aws.set(launch_failures={GROUP: "no capacity"})
    autoscaling.set_desired_capacity(AutoScalingGroupName=GROUP, DesiredCapacity=1)
    assert machines(aws) == []
    assert [(a["StatusCode"], a["StatusMessage"]) for a in activities(autoscaling)] == [("Failed", "no capacity")]
    aws.set(launch_failures={GROUP: ""})
    assert [a["StatusCode"] for a in activities(autoscaling)] == ["Successful", "Failed"]
    assert len(machines(aws)) == 1


def test_a_terminated_machine_is_replaced_with_the_tags_of_the_group(aws: Aws, autoscaling: Any) -> None:
    autoscaling.set_desired_capacity(AutoScalingGroupName=GROUP, DesiredCapacity=1)
    ec2 = aws.client("ec2")
    tagged = [{"Name": "tag:run", "Values": ["r1"]}]
    (first,) = ec2.describe_instances(Filters=tagged)["Reservations"][0]["Instances"]
    ec2.terminate_instances(InstanceIds=[first["InstanceId"]])
    found = [i for r in ec2.describe_instances(Filters=tagged)["Reservations"] for i in r["Instances"]]
    assert sorted(i["State"]["Name"] for i in found) == ["running", "terminated"]


@pytest.mark.parametrize(
    ("service", "method", "arguments"),
    [
        ("ec2", "describe_instances", {}),
        ("autoscaling", "describe_auto_scaling_groups", {}),
        ("logs", "describe_log_groups", {}),
        ("s3", "list_objects_v2", {"Bucket": "b"}),
        ("s3", "get_object", {"Bucket": "b", "Key": "a/b"}),
        ("scheduler", "get_schedule", {"Name": "s", "GroupName": "g"}),
        ("lambda", "get_function", {"FunctionName": "f"}),
        ("service-quotas", "get_service_quota", {"ServiceCode": "ec2", "QuotaCode": "L-3819A6DF"}),
        ("cloudformation", "describe_stacks", {}),
    ],
)
def test_any_call_can_be_refused_for_a_while(aws: Aws, service: str, method: str, arguments: dict[str, Any]) -> None:
    client = aws.client(service)
    call = f"{service}.{client.meta.method_to_api_mapping[method]}"
    aws.fault(call, "AccessDeniedException", "not today", times=1)
    with pytest.raises(botocore.exceptions.ClientError, match=r"AccessDeniedException.*not today"):
        getattr(client, method)(**arguments)
    assert aws.calls() == [call]
    with suppress(client.exceptions.ClientError):  # now moto answers: with what is not there
        getattr(client, method)(**arguments)
    assert aws.calls() == [call, call]


def test_the_network_can_go(aws: Aws) -> None:
    aws.fault("sts.*", "network")
    client = aws.client("sts")
    with pytest.raises(botocore.exceptions.BotoCoreError):
        client.get_caller_identity()
    aws.heal()
    assert client.get_caller_identity()["Account"] == aws.account


def test_log_events_come_late_by_page_and_by_prefix(aws: Aws) -> None:
    logs = aws.client("logs")
    logs.create_log_group(logGroupName="g")
    now = int(time.time() * 1000)
    for stream in ("r1/a", "r1/b", "r2/a"):
        logs.create_log_stream(logGroupName="g", logStreamName=stream)
        events = [{"timestamp": now + i, "message": f"{stream} {i}"} for i in range(2)]
        logs.put_log_events(logGroupName="g", logStreamName=stream, logEvents=events)

    def read() -> list[str]:
        pages = logs.get_paginator("filter_log_events").paginate(logGroupName="g", logStreamNamePrefix="r1/")
        return [event["message"] for page in pages for event in page["events"]]

    assert read() == ["r1/a 0", "r1/b 0", "r1/a 1", "r1/b 1"]
    aws.set(log_page_events=3)
    aws.clear_calls()
    assert len(read()) == 4
    assert aws.calls() == ["logs.FilterLogEvents"] * 2
    aws.set(log_delay_seconds=60)
    assert read() == []


def test_a_stack_makes_a_secret_without_a_value_and_a_schedule_group(aws: Aws) -> None:
    stacks, secrets, scheduler = (aws.client(name) for name in ("cloudformation", "secretsmanager", "scheduler"))
    template = {
        "Resources": {
            "Secret": {"Type": "AWS::SecretsManager::Secret", "Properties": {"Name": "n/token"}},
            "Group": {"Type": "AWS::Scheduler::ScheduleGroup", "Properties": {"Name": "g"}},
        },
        "Outputs": {"SecretArn": {"Value": {"Ref": "Secret"}}},
    }
    stacks.create_stack(StackName="s", TemplateBody=json.dumps(template))
    (stack,) = stacks.describe_stacks(StackName="s")["Stacks"]
    arn = stack["Outputs"][0]["OutputValue"]
    assert secrets.describe_secret(SecretId="n/token")["ARN"] == arn
    with pytest.raises(secrets.exceptions.ResourceNotFoundException, match="AWSCURRENT"):
        secrets.get_secret_value(SecretId=arn)
    assert scheduler.list_schedules(GroupName="g")["Schedules"] == []

    aws.set(delete_failures={"s": "in use"})
    stacks.delete_stack(StackName="s")
    assert stacks.describe_stacks(StackName="s")["Stacks"][0]["StackStatus"] == "DELETE_FAILED"
    aws.set(delete_failures={"s": ""})
    stacks.delete_stack(StackName="s")
    with pytest.raises(botocore.exceptions.ClientError, match="does not exist"):
        stacks.describe_stacks(StackName="s")
    assert secrets.list_secrets()["SecretList"] == []
    with pytest.raises(scheduler.exceptions.ResourceNotFoundException):
        scheduler.get_schedule_group(Name="g")


def test_a_stack_can_be_in_any_state(aws: Aws) -> None:
    aws.set(stack_status={"s": "ROLLBACK_COMPLETE"})
    (stack,) = aws.client("cloudformation").describe_stacks(StackName="s")["Stacks"]
    assert stack["StackStatus"] == "ROLLBACK_COMPLETE"


def test_the_next_test_finds_nothing_of_the_last(aws: Aws) -> None:
    aws.set(quotas={"L-3819A6DF": 0})
    aws.client("s3").create_bucket(Bucket="bucket")
    aws.reset()
    quotas = aws.client("service-quotas")
    assert quotas.get_service_quota(ServiceCode="ec2", QuotaCode="L-3819A6DF")["Quota"]["Value"] == 64
    assert aws.client("s3").list_buckets()["Buckets"] == []


def test_a_client_without_retries_sees_throttling(aws: Aws) -> None:
    aws.fault("ec2.DescribeInstances", "RequestLimitExceeded", status=503)
    client = boto3.client("ec2", config=Config(retries={"total_max_attempts": 1}))
    with pytest.raises(botocore.exceptions.ClientError, match="RequestLimitExceeded"):
        client.describe_instances()


def change(aws: Aws, stack: str, template: dict[str, Any], *, imports: bool) -> None:
    """Create a stack by a change set, as `cdk deploy` does."""
    stacks = aws.client("cloudformation")
    stacks.create_change_set(
        StackName=stack, ChangeSetName="c", ChangeSetType="CREATE", TemplateBody=json.dumps(template),
        ImportExistingResources=imports,
    )  # fmt: skip
    stacks.execute_change_set(StackName=stack, ChangeSetName="c")


def test_a_change_set_takes_over_a_bucket_only_where_it_says_so(aws: Aws) -> None:
    aws.client("s3").create_bucket(Bucket="bucket")
    bucket = {"Type": "AWS::S3::Bucket", "Properties": {"BucketName": "bucket"}, "DeletionPolicy": "Retain"}
    template = {"Resources": {"Bucket": bucket}}
    with pytest.raises(botocore.exceptions.ClientError, match="BucketAlready"):
        change(aws, "without", template, imports=False)
    change(aws, "with", template, imports=True)
    assert (
        aws.client("cloudformation").describe_stacks(StackName="with")["Stacks"][0]["StackStatus"] == "CREATE_COMPLETE"
    )


def test_a_stack_whose_export_is_in_use_stays(aws: Aws) -> None:
    topic = {"Type": "AWS::SNS::Topic", "Properties": {"TopicName": "first"}}
    output = {"Value": {"Ref": "Topic"}, "Export": {"Name": "first:Topic"}}
    change(aws, "first", {"Resources": {"Topic": topic}, "Outputs": {"Topic": output}}, imports=False)
    group = {"Type": "AWS::Logs::LogGroup", "Properties": {"LogGroupName": {"Fn::ImportValue": "first:Topic"}}}
    change(aws, "second", {"Resources": {"Group": group}}, imports=False)
    stacks, names = aws.client("cloudformation"), {"first", "second"}
    (made,) = aws.client("logs").describe_log_groups()["logGroups"]
    assert made["logGroupName"].endswith(":first")
    stacks.delete_stack(StackName="first")
    assert {stack["StackName"] for stack in stacks.describe_stacks()["Stacks"]} == names
    for name in ("second", "first"):
        stacks.delete_stack(StackName=name)
    assert stacks.describe_stacks()["Stacks"] == []
