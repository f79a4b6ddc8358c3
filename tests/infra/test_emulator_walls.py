"""The emulated account refuses what a role's statements do not allow: the machine's own calls, over HTTP."""

from __future__ import annotations

from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from infra.config import Installation
from tests.emulator.aws import REGION, Aws
from tests.emulator.principals import BUCKET, put_role

INSTALLATION = Installation()
LOGS = {"logGroupName": INSTALLATION.log_group, "logStreamName": "rn50-1/i-1/boot"}


@pytest.fixture
def machine(aws: Aws) -> Any:
    """Makes clients with the role of a machine for training, in an account with the groups and the secret."""
    aws.client("s3").create_bucket(Bucket=BUCKET)
    aws.client("secretsmanager").create_secret(Name=INSTALLATION.secret_name, SecretString="hf_canary")
    aws.client("logs").create_log_group(logGroupName=INSTALLATION.log_group)
    autoscaling = aws.client("autoscaling")
    autoscaling.create_launch_configuration(LaunchConfigurationName="lc", ImageId="ami-1", InstanceType="g6.xlarge")
    for name in INSTALLATION.groups:
        autoscaling.create_auto_scaling_group(
            AutoScalingGroupName=name, LaunchConfigurationName="lc", MinSize=0, MaxSize=1, DesiredCapacity=0,
            AvailabilityZones=[f"{REGION}a"],
        )  # fmt: skip
    role = put_role(aws.client("iam"), "train-machine")
    granted = aws.client("sts").assume_role(RoleArn=role, RoleSessionName="i-1")["Credentials"]

    def make(service: str) -> Any:
        return boto3.Session(
            granted["AccessKeyId"], granted["SecretAccessKey"], granted["SessionToken"], REGION
        ).client(service, endpoint_url=aws.endpoint)  # fmt: skip

    return make


def test_a_machine_does_what_boot_does_and_nothing_else(machine: Any, aws: Aws) -> None:
    assert machine("secretsmanager").get_secret_value(SecretId=INSTALLATION.secret_name)["SecretString"] == "hf_canary"
    machine("logs").create_log_stream(**LOGS)
    machine("autoscaling").set_desired_capacity(AutoScalingGroupName=INSTALLATION.train_group, DesiredCapacity=0)
    machine("s3").put_object(Bucket=BUCKET, Key="runs/rn50-1/failed.json", Body=b"{}")
    assert machine("s3").list_objects_v2(Bucket=BUCKET, Prefix="runs/rn50-1/")["KeyCount"] == 1
    with pytest.raises(ClientError, match="NoSuchKey"):
        machine("s3").get_object(Bucket=BUCKET, Key="checkpoints/rn50-1/HEAD.json")
    assert machine("sts").get_caller_identity()["Arn"].endswith("assumed-role/train-machine/i-1")
    prepare = {"AutoScalingGroupName": INSTALLATION.prepare_group}
    for service, operation, arguments in (
        ("s3", "put_object", {"Bucket": BUCKET, "Key": "runs/rn50-1/spec.json", "Body": b"{}"}),
        ("s3", "put_object", {"Bucket": BUCKET, "Key": "checkpoints/rn50-1/HEAD.json", "Body": b"{}"}),
        ("s3", "get_object", {"Bucket": BUCKET, "Key": "datasets/nothing"}),
        ("s3", "delete_object", {"Bucket": BUCKET, "Key": "runs/rn50-1/failed.json"}),
        ("autoscaling", "set_desired_capacity", prepare | {"DesiredCapacity": 1}),
        ("autoscaling", "update_auto_scaling_group", {"AutoScalingGroupName": INSTALLATION.train_group, "MaxSize": 9}),
        ("secretsmanager", "put_secret_value", {"SecretId": INSTALLATION.secret_name, "SecretString": "x"}),
        ("ec2", "describe_instances", {}),
        ("sts", "assume_role", {"RoleArn": put_role(aws.client("iam"), "prepare-run"), "RoleSessionName": "i-1"}),
    ):
        with pytest.raises(ClientError, match="AccessDenied"):
            getattr(machine(service), operation)(**arguments)


def test_a_session_ends_when_the_test_says_so_and_the_next_one_serves(machine: Any, aws: Aws) -> None:
    machine("sts").get_caller_identity()
    aws.set(session_seconds=0.001)
    for service, operation, arguments in (("s3", "list_objects_v2", {"Bucket": BUCKET, "Prefix": "runs/"}),
                                          ("logs", "create_log_stream", LOGS)):  # fmt: skip
        with pytest.raises(ClientError, match="ExpiredToken"):
            getattr(machine(service), operation)(**arguments)
