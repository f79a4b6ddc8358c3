"""preflight: every reason why a deploy or a launch would fail, all at once, each with one command as its fix."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import pytest

from infra.config import Installation
from infra.operate.commands import preflight as module
from infra.operate.planning.options import Request
from infra.operate.session import Aws as Operator
from tests.emulator.aws import Aws
from tests.infra import deployed, hub
from tests.infra.hub import Hub
from tests.infra.operator import fixes, infra, prepare_account, rows, session
from trainer.contract import UserError

LEAST_CHECKS = 14
SECONDS = 15.0
TRAINING, STORAGE = Installation().training_stack, Installation().storage_stack


@pytest.fixture(autouse=True)
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub.serve() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        yield served


@pytest.fixture
def ready(aws: Aws) -> Aws:
    """A prepared account with the token, after `make secret`; training is not deployed yet."""
    prepare_account(aws)
    aws.client("cloudformation").create_stack(StackName=STORAGE, TemplateBody=json.dumps(deployed.storage_template()))
    put_token(aws)
    return aws


@pytest.fixture
def installed(aws: Aws) -> Aws:
    """Deployed, with the token."""
    prepare_account(aws)
    deployed.deploy(aws)
    put_token(aws)
    return aws


def put_token(aws: Aws, token: str = hub.TOKEN) -> None:
    aws.client("secretsmanager").put_secret_value(SecretId=Installation().secret_name, SecretString=token)


@pytest.fixture
def look(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run it in this process, without Docker; what it printed."""

    def preflight(request: Request | None = None, **context: str) -> str:
        installation = Installation(**{"image_uri": "registry.example/trainer:1"} | context)
        module.preflight(Operator(session()), installation, request or Request(), None, deploys=True)
        return capsys.readouterr().out

    return preflight


def test_where_everything_is_ready_it_says_so_quickly(installed: Aws) -> None:
    began = time.monotonic()
    ended = infra("-c", "image_uri=registry.example/trainer:1", "preflight")
    assert time.monotonic() - began < SECONDS
    assert ended.code == 0, ended.said + ended.error
    found = rows(ended.said)
    assert len(found) >= LEAST_CHECKS
    assert {state for state, _ in found.values()} <= {"ok", "not needed"}
    assert "make deploy" in ended.said


def test_in_a_fresh_account_everything_that_lacks_is_told_at_once_with_one_command_each(aws: Aws) -> None:
    aws.set(quotas={"L-3819A6DF": 0.0})
    ended = infra("-c", "image_uri=registry.example/trainer:1", "preflight")
    assert ended.code == 3
    told = fixes(ended.said)
    assert told.keys() == {"vCPU quota", "spot role", "machine image", "token", "CDK bootstrap"}
    assert told["CDK bootstrap"].endswith("bootstrap aws://123456789012/us-east-1")
    assert told["token"] == "make secret"
    assert told["spot role"] == "aws iam create-service-linked-role --aws-service-name spot.amazonaws.com"
    assert told["vCPU quota"].endswith("--quota-code L-3819A6DF --desired-value 16")
    assert rows(ended.said)["gate of the hub"] == ("unknown", "needs the token first")


def test_the_commands_that_it_names_repair_what_it_found(aws: Aws, look: Callable[..., str]) -> None:
    assert "spot role" in fixes(look())
    prepare_account(aws)
    assert fixes(look()).keys() == {"token"}
    deployed.deploy(aws)
    put_token(aws)
    assert fixes(look()) == {}


def test_without_credentials_only_that_and_what_needs_none_is_told(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    ended = infra("preflight")
    found = rows(ended.said)
    assert ended.code == 3
    assert found["credentials"][0] == "failed"
    assert found["CDK command line"][0] == "ok"
    assert found["vCPU quota"] == ("unknown", "needs credentials")
    assert fixes(ended.said)["credentials"].startswith("aws configure")


def test_a_region_that_does_not_exist_is_named(ready: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "us-est-1")
    ended = infra("preflight")
    assert ended.code == 3
    assert "'us-est-1' is not a region of AWS" in ended.said


def test_a_check_that_is_denied_is_unknown_with_the_reason_and_fails_nothing(
    ready: Aws, look: Callable[..., str]
) -> None:
    ready.fault("service-quotas.*", code="AccessDeniedException", message="not for you")
    ready.fault("iam.ListRoles", code="AccessDenied", message="not for you")
    said = look()
    assert rows(said)["vCPU quota"] == ("unknown", "AWS refused (AccessDeniedException): not for you")
    assert rows(said)["spot role"][0] == "unknown"
    assert fixes(said) == {}


@pytest.mark.parametrize(("market", "code"), [("spot", "L-3819A6DF"), ("on-demand", "L-DB2E81BA")])
def test_the_quota_is_that_of_the_family_and_the_market(
    ready: Aws, look: Callable[..., str], market: str, code: str
) -> None:
    ready.set(quotas={code: 3.0})
    said = look(market=market)
    assert rows(said)["vCPU quota"][1] == f"{code}, G and VT {market}: 3 vCPUs, 0 in use, at least 4 needed"
    assert fixes(said)["vCPU quota"].endswith("--desired-value 16")


def test_a_quota_that_machines_use_already_counts_as_used(ready: Aws, look: Callable[..., str]) -> None:
    ready.client("ec2").run_instances(
        ImageId="ami-12345678", InstanceType="g5.4xlarge", MinCount=1, MaxCount=1,
        InstanceMarketOptions={"MarketType": "spot"},
    )  # fmt: skip
    ready.set(quotas={"L-3819A6DF": 16.0})
    assert "16 vCPUs, 16 in use, at least 4 needed" in rows(look())["vCPU quota"][1]


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


def test_a_gate_that_is_closed_for_the_token_names_the_page_to_accept(
    ready: Aws, look: Callable[..., str], served: Hub
) -> None:
    served.accepted.clear()
    assert fixes(look())["gate of the hub"] == f"open {served.endpoint}/datasets/{hub.IMAGENET}"


def test_a_token_that_the_hub_does_not_know_is_told(ready: Aws, look: Callable[..., str]) -> None:
    put_token(ready, "hf_somethingelse0123456789")
    said = look()
    assert rows(said)["gate of the hub"][1] == "the hub does not know this token"
    assert fixes(said)["gate of the hub"] == "make secret"


def test_open_data_needs_no_token(aws: Aws, look: Callable[..., str]) -> None:
    prepare_account(aws)
    deployed.deploy(aws)
    found = rows(look(Request(data=hub.OPEN)))
    assert found["token"] == ("not needed", f"{hub.OPEN} is open to everybody")
    assert found["gate of the hub"][0] == "ok"


def test_a_hub_that_cannot_be_reached_fails_nothing(
    ready: Aws, look: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert rows(look())["gate of the hub"][0] == "unknown"


def test_the_token_is_never_shown(ready: Aws) -> None:
    ended = infra("preflight")
    assert hub.TOKEN not in ended.said + ended.error


def test_prepared_data_in_the_bucket_is_found_and_needs_no_hub(installed: Aws, look: Callable[..., str]) -> None:
    put_dataset(installed)
    found = rows(look())
    assert "imagenet-1k/256-128px, 1,281,167 images, 37 GB" in found["data"][1]
    assert found["token"][0] == "not needed"


def put_dataset(aws: Aws) -> str:
    (bucket,) = [one["Name"] for one in aws.client("s3").list_buckets()["Buckets"]]
    shard = {"file": "a.arrow", "images": 1281167, "bytes": 37_000_000_000, "crc32": 1}
    sizes = [{"short_side": 256, "quality": 90, "shards": [shard]}]
    index = {"splits": {"train": {"images": 1281167, "sizes": sizes}, "val": {"images": 0, "sizes": []}}}
    key = "datasets/imagenet-1k/256-128px/index.json"
    aws.client("s3").put_object(Bucket=bucket, Key=key, Body=json.dumps(index).encode())
    return f"s3://{bucket}/{key.removesuffix('/index.json')}"


def test_an_address_in_the_bucket_without_a_dataset_is_a_failure(installed: Aws, look: Callable[..., str]) -> None:
    (bucket,) = [one["Name"] for one in installed.client("s3").list_buckets()["Buckets"]]
    said = look(Request(data=f"s3://{bucket}/datasets/imagenet-1k/v0"))
    assert "no index.json" in rows(said)["data"][1]
    assert fixes(said)["data"] == "make prepare ON=aws"


def test_a_volume_too_small_for_image_and_data_is_told(ready: Aws, look: Callable[..., str]) -> None:
    assert "no room for the AMI" in rows(look(disk_gib="60"))["disk"][1]
    said = look(Request(types=("g4dn.xlarge",)))
    assert rows(said)["disk"][1] == "200 GB of data do not fit on g4dn.xlarge"


def test_a_bucket_of_somebody_else_is_a_failure_and_one_of_ours_is_adopted(aws: Aws, look: Callable[..., str]) -> None:
    prepare_account(aws)
    assert rows(look(bucket_name="my-store"))["bucket"] == ("ok", "my-store is free")
    aws.client("s3").create_bucket(Bucket="my-store")
    said = look(bucket_name="my-store")
    assert rows(said)["bucket"][0] == "failed"
    assert "my-store is there without the tag resnet-spot=resnet-spot" in rows(said)["bucket"][1]
    assert "bucket_name=my-store-123456789012" in fixes(said)["bucket"]
    aws.client("s3").put_bucket_tagging(Bucket="my-store", Tagging={"TagSet": deployed.tags()})
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


def test_a_region_of_two_zones_has_to_be_told_them(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "us-west-1")
    said = infra("preflight").said
    assert "us-west-1 has 2 zones, and 3 are used unless they are named" in rows(said)["region"][1]
    assert "-c zones=us-west-1a,us-west-1b deploy" in fixes(said)["region"]
    assert rows(infra("-c", "zones=us-west-1a,us-west-1b", "preflight").said)["region"] == ("ok", "us-west-1, 2 zones")


@pytest.mark.parametrize(
    ("status", "fix"),
    [
        ("DELETE_FAILED", "make destroy"),
        ("UPDATE_ROLLBACK_FAILED", f"aws cloudformation continue-update-rollback --stack-name {TRAINING}"),
        ("UPDATE_IN_PROGRESS", f"aws cloudformation wait stack-update-complete --stack-name {TRAINING}"),
    ],
)
def test_a_stack_that_cannot_be_updated_has_its_command(
    installed: Aws, look: Callable[..., str], status: str, fix: str
) -> None:
    installed.set(stack_status={TRAINING: status})
    said = look()
    assert status in rows(said)["stacks"][1]
    assert fixes(said)["stacks"] == fix


def test_another_run_is_told_with_how_to_stop_it(installed: Aws, look: Callable[..., str]) -> None:
    deployed.Deployed(installed).launch("other")
    said = look()
    assert "the run other is active" in rows(said)["other runs"][1]
    assert fixes(said)["other runs"] == "make stop"


def test_a_budget_below_the_estimate_is_told_with_one_that_is_enough(ready: Aws, look: Callable[..., str]) -> None:
    said = look(Request(budget_usd=1.0))
    assert rows(said)["budget"][1].startswith("BUDGET=1 is below the estimate of $5.37")
    assert fixes(said)["budget"] == "make launch BUDGET=7"


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


def test_a_laptop_without_docker_is_told(ready: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")
    ended = infra("preflight")
    state, text = rows(ended.said)["Docker"]
    assert (state, ended.code) == ("failed", 3)
    assert "docker" in text


def test_a_check_that_hangs_is_unknown_and_holds_nobody_up(
    ready: Aws, look: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LIMIT_SECONDS", 3.0)
    slow = {**module.DEPLOY, "slow": lambda wanted: time.sleep(60)}
    monkeypatch.setattr(module, "DEPLOY", slow)
    began = time.monotonic()
    said = look()
    assert rows(said)["slow"] == ("unknown", "no answer in 3 s")
    assert time.monotonic() - began < SECONDS


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(recipe="resnet51"), r"recipe 'resnet51' is unknown: choose one of digits, finetune"),
        (Request(types=("c7a.2xlarge",)), r"'c7a\.2xlarge' has no GPU"),
        (Request(data="/home/me/images"), r"DATA='/home/me/images' is not known to a machine on AWS"),
        (Request(hours=1000.0), r"HOURS=1000 is out of range"),
        (Request(market="reserved"), r"MARKET='reserved' is unknown"),
        (Request(run_id="My Run"), r"RUN='My Run' is not a run id"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anybody_is_asked(
    aws: Aws, look: Callable[..., str], request_: Request, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        look(request_)
    assert aws.calls() == []
