"""preflight of the account: quotas, zones, the bucket, the secret, the stacks, the VPC."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from infra.config import Installation
from infra.operate.planning.options import Request
from tests.emulator.aws import Aws
from tests.infra import deployed, hub
from tests.infra.operator import fixes, prepare_account, rows

pytestmark = pytest.mark.usefixtures("served")
TRAINING, STORAGE = Installation().training_stack, Installation().storage_stack


@pytest.mark.parametrize(("market", "code"), [("spot", "L-3819A6DF"), ("on-demand", "L-DB2E81BA")])
def test_the_quota_is_that_of_the_family_and_the_market(
    ready: Aws, look: Callable[..., str], market: str, code: str
) -> None:
    ready.set(quotas={code: 3.0})
    said = look(market=market)
    assert rows(said)["vCPU quota"][1] == f"{code}, G and VT {market}: 3 vCPUs, 0 in use, at least 4 needed"
    assert fixes(said)["vCPU quota"].endswith("--desired-value 16")


def test_a_default_key_of_the_accounts_own_is_told_with_the_command_that_lets_auto_scaling_use_it(
    ready: Aws, look: Callable[..., str]
) -> None:
    """Without it AWS starts no machine, and says "Client error on launch"."""
    ready.client("ec2").create_volume(AvailabilityZone="us-east-1a", Size=1, Encrypted=True)  # makes AWS's own key
    assert rows(look())["key of the disks"][0] == "ok"
    ready.client("ec2").create_volume(AvailabilityZone="us-east-1a", Size=1, Encrypted=True)  # makes AWS's own key
    assert rows(look())["key of the disks"][0] == "ok"
    key = ready.client("kms").create_key()["KeyMetadata"]["Arn"]
    ready.client("ec2").modify_ebs_default_kms_key_id(KmsKeyId=key)
    said = look()
    assert rows(said)["key of the disks"] == (
        "warning", f"disks get {key}: unless Auto Scaling was allowed to use it, no machine starts"
    )  # fmt: skip
    assert fixes(said)["key of the disks"] == (
        f"aws kms create-grant --key-id {key} --grantee-principal arn:aws:iam::123456789012:role/aws-service-role/"
        "autoscaling.amazonaws.com/AWSServiceRoleForAutoScaling --operations Encrypt Decrypt ReEncryptFrom ReEncryptTo "
        "GenerateDataKey GenerateDataKeyWithoutPlaintext DescribeKey CreateGrant"
    )


def test_a_quota_that_machines_use_already_counts_as_used(ready: Aws, look: Callable[..., str]) -> None:
    ready.client("ec2").run_instances(
        ImageId="ami-12345678", InstanceType="g5.4xlarge", MinCount=1, MaxCount=1,
        InstanceMarketOptions={"MarketType": "spot"},
    )  # fmt: skip
    ready.set(quotas={"L-3819A6DF": 16.0})
    assert "16 vCPUs, 16 in use, at least 4 needed" in rows(look())["vCPU quota"][1]


def test_an_account_on_the_free_plan_is_told_to_change_it_before_it_asks_for_a_quota(
    ready: Aws, look: Callable[..., str]
) -> None:
    ready.set(quotas={"L-3819A6DF": 0.0}, account_plan="FREE")
    said = look()
    assert "the free plan starts no GPU: change to the paid plan" in rows(said)["vCPU quota"][1]
    assert fixes(said)["vCPU quota"].startswith("aws freetier upgrade-account-plan --account-plan-type PAID")
    ready.fault("freetier.*", code="AccessDeniedException")
    assert "request-service-quota-increase" in fixes(look())["vCPU quota"]


def test_types_that_the_quota_is_too_small_for_are_named(ready: Aws, look: Callable[..., str]) -> None:
    ready.set(quotas={"L-3819A6DF": 8.0})
    state, text = rows(look())["vCPU quota"]
    assert state == "ok"
    assert text.endswith("too few for g6.4xlarge, g5.4xlarge, g6e.4xlarge")


def test_a_change_to_on_demand_needs_the_quota_of_on_demand_as_well(ready: Aws, look: Callable[..., str]) -> None:
    ready.set(quotas={"L-DB2E81BA": 0.0})
    assert rows(look())["vCPU quota of on-demand"][0] == "not needed"
    assert "vCPU quota of on-demand" in fixes(look(Request(on_demand_after_minutes=30)))


def test_prepare_needs_the_quota_of_cpu_machines(ready: Aws, look: Callable[..., str]) -> None:
    ready.set(quotas={"L-34B43A08": 0.0, "L-3819A6DF": 0.0})
    assert "L-34B43A08" in fixes(look(Request(kind="prepare", data=hub.IMAGENET)))["vCPU quota"]


def test_a_bucket_of_somebody_else_is_a_failure_and_one_of_ours_is_adopted(aws: Aws, look: Callable[..., str]) -> None:
    prepare_account(aws)
    assert rows(look(bucket_name="my-store"))["bucket"] == ("ok", "my-store is free")
    aws.client("s3").create_bucket(Bucket="my-store")
    said = look(bucket_name="my-store")
    assert rows(said)["bucket"][0] == "failed"
    assert "my-store is there without the tag resnet-spot=resnet-spot" in rows(said)["bucket"][1]
    assert "bucket_name=my-store-123456789012" in fixes(said)["bucket"]
    aws.client("s3").put_bucket_tagging(Bucket="my-store", Tagging={"TagSet": deployed.tags()})
    assert rows(look(bucket_name="my-store"))["bucket"] == (
        "ok",
        "my-store is there and will be adopted; it keeps no old versions yet: the next deploy turns them on",
    )
    versions = {"Status": "Enabled"}
    aws.client("s3").put_bucket_versioning(Bucket="my-store", VersioningConfiguration=versions)
    assert rows(look(bucket_name="my-store"))["bucket"] == ("ok", "my-store is there and will be adopted")
    aws.fault("s3.HeadBucket", code="403", status=403)
    said = look(bucket_name="my-store")
    assert rows(said)["bucket"][1] == "my-store belongs to somebody else, or you may not use it"
    assert "bucket_name=my-store-123456789012" in fixes(said)["bucket"]


def test_another_bucket_name_than_the_stack_has_is_refused(installed: Aws, look: Callable[..., str]) -> None:
    assert "whose data would stay behind" in rows(look(bucket_name="another-store"))["bucket"][1]


@pytest.mark.parametrize("value", [{}, {"SecretString": hub.TOKEN}])
def test_a_secret_left_without_its_stack_is_told(aws: Aws, look: Callable[..., str], value: dict[str, str]) -> None:
    prepare_account(aws)
    aws.client("secretsmanager").create_secret(Name=Installation().secret_name, **value)
    said = look()
    assert "`make secret`" in rows(said)["token"][1]
    assert fixes(said)["token"] == (
        f"aws secretsmanager delete-secret --force-delete-without-recovery --secret-id {Installation().secret_name}"
    )


@pytest.mark.parametrize("status", ["DELETE_FAILED", "ROLLBACK_FAILED"])
def test_a_storage_stack_that_ended_badly_is_let_go_of_once_nothing_uses_it(
    installed: Aws, look: Callable[..., str], status: str
) -> None:
    installed.set(stack_status={STORAGE: status})
    assert fixes(look())["stacks"] == "make destroy"
    installed.client("cloudformation").delete_stack(StackName=TRAINING)
    assert fixes(look())["stacks"] == f"aws cloudformation delete-stack --stack-name {STORAGE}"


def test_no_room_for_a_vpc_is_told(aws: Aws, look: Callable[..., str]) -> None:
    prepare_account(aws)
    aws.set(quotas={"L-F678F1CE": 1.0})
    assert fixes(look())["VPC"].endswith("--quota-code L-F678F1CE --desired-value 2")
    assert "subnet-0a" in rows(look(vpc_id="vpc-0a", subnet_ids="subnet-0a"))["VPC"][1]


def test_zones_with_few_pools_are_told_and_unknown_zones_refused(ready: Aws, look: Callable[..., str]) -> None:
    few = rows(look(Request(types=("g5.xlarge",)), zones="us-east-1a"))["zones"]
    assert few[0] == "ok"
    assert "with fewer than 12 spot capacity is often gone" in few[1]
    assert "us-east-1 has no zone us-east-1z" in rows(look(zones="us-east-1z"))["region"][1]
