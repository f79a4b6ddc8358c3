"""deploy: preflight, dead stacks away, CDK with the installation's values, the images before away, then the launch.

The real `cdk` is in test_end_to_end.py; here a stand-in takes its place.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import boto3
import pytest
from botocore.credentials import Credentials

from infra.config import Installation, Output, Tag
from infra.operate.commands.deploy import prune_images
from infra.operate.installation import cdk
from infra.operate.installation.stack_states import DEAD, stack_status
from infra.operate.session import Aws as Operator
from infra.operate.session import AwsError
from tests import ROOT
from tests.emulator.aws import Aws
from tests.emulator.aws_images import MANIFEST
from tests.infra import deployed, hub
from tests.infra.operator import GIVEN_IMAGE, fixes, infra, prepare_account, session, stand_in_for_cdk

pytestmark = pytest.mark.usefixtures("served")
INSTALLATION = Installation()
IMAGE = ("-c", f"image_uri={GIVEN_IMAGE}")  # so that no Docker engine is needed
STACKS = (INSTALLATION.storage_stack, INSTALLATION.training_stack)


@pytest.fixture
def account(aws: Aws) -> Aws:
    prepare_account(aws)
    return aws


def test_it_checks_deploys_and_launches(account: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stand_in_for_cdk(tmp_path, monkeypatch, deploys=True)
    ended = infra(*IMAGE, "deploy", "--recipe", "digits", "--run", "first")
    assert ended.code == 0, ended.said + ended.error
    (call,) = calls()
    assert call[:5] == ["deploy", *STACKS, "--require-approval", "never"]
    assert "--import-existing-resources" not in call
    assert f"resnet-spot:image_uri={GIVEN_IMAGE}" in call
    assert ended.said.index("checks in") < ended.said.index("deployed:") < ended.said.index("launched: first")
    assert ended.said.count("checks in") == 1
    assert deployed.Deployed(account).desired() == 1


def test_without_a_launch_nothing_bills(account: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_for_cdk(tmp_path, monkeypatch, deploys=True)
    ended = infra(*IMAGE, "deploy", "--no-launch", "--recipe", "digits")
    assert ended.code == 0, ended.said + ended.error
    assert deployed.Deployed(account).desired() == 0
    assert "make launch" in ended.said


def test_a_failed_preflight_deploys_nothing(aws: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stand_in_for_cdk(tmp_path, monkeypatch, deploys=True)
    ended = infra(*IMAGE, "deploy", "--recipe", "digits")
    assert ended.code == 3
    assert "CDK bootstrap" in fixes(ended.said)
    assert calls() == []


def test_a_cdk_that_fails_launches_nothing(account: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_for_cdk(tmp_path, monkeypatch, code=1)
    ended = infra(*IMAGE, "deploy", "--recipe", "digits")
    assert ended.code == 4
    assert "cdk deploy ended with 1" in ended.error
    assert "the same command again goes on" in ended.error
    assert "launched" not in ended.said


@pytest.mark.parametrize(
    ("reason", "times"),
    [
        ("You can't create this secret because a secret with this name is already scheduled for deletion.", 2),
        ("A conflicting conditional operation is currently in progress against this resource.", 2),
        ("User is not authorized to perform: secretsmanager:CreateSecret", 1),
    ],
)
def test_a_name_that_aws_has_not_freed_yet_is_tried_again_and_another_failure_is_not(
    account: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str, times: int
) -> None:
    monkeypatch.setattr(cdk, "AGAIN_SECONDS", 0.05)
    calls, node = stand_in_for_cdk(tmp_path, monkeypatch, code=1), tmp_path / "node"
    is_first = f"len(open({str(tmp_path / 'calls')!r}).readlines()) < 2"  # later the name is free
    node.write_text(node.read_text().replace("sys.exit(1)", f"sys.exit({is_first})"))
    account.set(create_failures={INSTALLATION.storage_stack: reason})
    template = json.dumps(deployed.storage_template())
    account.client("cloudformation").create_stack(StackName=INSTALLATION.storage_stack, TemplateBody=template)
    ends = contextlib.nullcontext() if times > 1 else pytest.raises(AwsError, match="cdk deploy ended with 1")
    with ends:
        cdk.deploy(Operator(session()), INSTALLATION, "--all")
    assert len(calls()) == times


@pytest.mark.parametrize("status", DEAD)
def test_stacks_that_failed_at_first_are_deleted_and_made_again(
    account: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    deployed.deploy(account)
    account.set(stack_status={INSTALLATION.training_stack: status})
    calls = stand_in_for_cdk(tmp_path, monkeypatch)
    ended = infra(*IMAGE, "deploy", "--no-launch", "--recipe", "digits")
    assert f"{INSTALLATION.training_stack} is in {status}, from a deploy that failed: it is" in ended.said
    assert stack_status(Operator(session()), INSTALLATION.training_stack) == ""
    assert stack_status(Operator(session()), INSTALLATION.storage_stack) == "CREATE_COMPLETE"
    assert len(calls()) == 1


def test_a_bucket_that_was_kept_is_adopted(account: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_bucket(account, "my-store", INSTALLATION.name)
    calls = stand_in_for_cdk(tmp_path, monkeypatch)
    ended = infra(*IMAGE, "-c", "bucket_name=my-store", "deploy", "--no-launch", "--recipe", "digits")
    assert ended.code == 0, ended.said + ended.error
    assert "my-store is there and will be adopted" in ended.said
    assert "--import-existing-resources" in calls()[0]


def test_a_bucket_of_an_older_deploy_keeps_old_versions_from_now_on(
    account: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket, s3 = deployed.deploy(account).bucket, account.client("s3")
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Suspended"})
    stand_in_for_cdk(tmp_path, monkeypatch)
    ended = infra(*IMAGE, "deploy", "--no-launch", "--recipe", "digits")
    assert ended.code == 0, ended.said + ended.error
    assert f"{bucket} is there; it keeps no old versions yet: the next deploy turns them on" in ended.said
    assert f"s3://{bucket} keeps old versions from now on, for up to 7 days" in ended.said
    assert s3.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
    rules = s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    assert [rule.get("NoncurrentVersionExpiration", {}).get("NoncurrentDays") for rule in rules] == [None, 2, 7]
    assert "old versions" not in infra(*IMAGE, "deploy", "--no-launch", "--recipe", "digits").said


def test_it_does_not_touch_an_installation_that_is_training(
    account: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployed.deploy(account).launch("running")
    calls = stand_in_for_cdk(tmp_path, monkeypatch)
    ended = infra(*IMAGE, "deploy", "--recipe", "digits")
    assert (ended.code, calls()) == (3, [])
    assert fixes(ended.said)["other runs"] == "make stop"


def test_it_does_not_touch_an_installation_that_prepares_data(
    account: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployed.deploy(account).launch("prepare-x", kind="prepare")
    calls = stand_in_for_cdk(tmp_path, monkeypatch)
    ended = infra(*IMAGE, "deploy", "--recipe", "digits")
    assert (ended.code, calls()) == (3, [])
    assert "the run prepare-x is active" in ended.said


def make_bucket(aws: Aws, name: str, installation: str) -> None:
    aws.client("s3").create_bucket(Bucket=name)
    tags = {"TagSet": [{"Key": Tag.INSTALLATION, "Value": installation}]}
    aws.client("s3").put_bucket_tagging(Bucket=name, Tagging=tags)


@pytest.mark.parametrize("tag", ["", "another"])
def test_a_bucket_that_no_deploy_of_ours_made_is_never_adopted(
    account: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tag: str
) -> None:
    if tag:
        make_bucket(account, "my-store", tag)
    else:
        account.client("s3").create_bucket(Bucket="my-store")
    calls = stand_in_for_cdk(tmp_path, monkeypatch)
    options = (*IMAGE, "-c", "bucket_name=my-store")
    ended = infra(*options, "deploy", "--no-launch", "--recipe", "digits")
    assert (ended.code, calls()) == (3, [])
    assert "bucket_name=my-store-123456789012" in fixes(ended.said)["bucket"]
    infra(*options, "secret", stdin=hub.TOKEN)  # deploys the storage stack without a preflight
    assert "--import-existing-resources" not in calls()[0]


def zones_given(call: list[str]) -> str:
    (zones,) = [word.partition("=")[2] for word in call if word.startswith("resnet-spot:zones=")]
    return zones


def test_the_zones_are_those_that_offer_most_types_and_stay_as_they_were_deployed(
    account: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offers = account.client("ec2").get_paginator("describe_instance_type_offerings").paginate(
        LocationType="availability-zone",
        Filters=[{"Name": "instance-type", "Values": INSTALLATION.instance_types.split(",")}],
    )  # fmt: skip
    offered = Counter(one["Location"] for page in offers for one in page["InstanceTypeOfferings"])
    calls = stand_in_for_cdk(tmp_path, monkeypatch, deploys=True)
    for _ in range(2):
        assert infra(*IMAGE, "deploy", "--no-launch", "--recipe", "digits").code == 0
        stand_in_for_cdk(tmp_path, monkeypatch)
    first, second = (zones_given(call).split(",") for call in calls())
    assert len(first) == 3
    others = {f"us-east-1{letter}" for letter in "abcdef"} - {*first}
    assert min(offered[zone] for zone in first) >= max(offered[zone] for zone in others)
    assert second == ["us-east-1b", "us-east-1c"]  # where the small stack's subnets are
    assert infra(*IMAGE, "-c", "zones=us-east-1f", "deploy", "--no-launch", "--recipe", "digits").code == 0
    assert zones_given(calls()[-1]) == "us-east-1f"


def test_a_given_vpc_has_its_own_zones(account: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ec2 = account.client("ec2")
    vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    subnet = ec2.describe_subnets(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["Subnets"][0]["SubnetId"]
    (table,) = ec2.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["RouteTables"]
    gateway = ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
    ec2.attach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
    ec2.create_route(RouteTableId=table["RouteTableId"], DestinationCidrBlock="0.0.0.0/0", GatewayId=gateway)
    calls = stand_in_for_cdk(tmp_path, monkeypatch)
    given = ("-c", f"vpc_id={vpc}", "-c", f"subnet_ids={subnet}")
    ended = infra(*IMAGE, *given, "deploy", "--no-launch", "--recipe", "digits")
    assert ended.code == 0, ended.said + ended.error
    assert zones_given(calls()[0]) == ""


@pytest.mark.parametrize(("method", "is_handed_over"), [("iam-role", True), ("sso", False)])
def test_cdk_gets_the_credentials_of_an_instance_role_which_it_does_not_ask_for(
    aws: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, is_handed_over: bool
) -> None:
    found = tmp_path / "found"
    (tmp_path / "node").write_text(f"#!/bin/sh\necho $AWS_ACCESS_KEY_ID $AWS_SESSION_TOKEN $* > {found}\n")
    (tmp_path / "node").chmod(0o755)
    monkeypatch.setenv("JSII_NODE", str(tmp_path / "node"))
    own = boto3.Session(region_name="us-east-1")
    role = Credentials("ASIAROLE", "role-secret", "role-token", method=method)
    monkeypatch.setattr(own, "get_credentials", lambda: role)
    cdk.run(Operator(own), INSTALLATION, "deploy")
    said = found.read_text()
    assert said.startswith("ASIAROLE role-token " if is_handed_over else "testing ")
    assert "role-secret" not in said


def test_all_images_of_earlier_deploys_are_deleted_and_nobody_elses(
    account: Aws, capsys: pytest.CaptureFixture[str]
) -> None:
    ecr, repository = account.client("ecr"), "cdk-hnb659fds-container-assets-123456789012-us-east-1"
    now, before, stopped, plain = (letter * 64 for letter in "abcd")
    others = {plain, f"resnet-spot-too-{before}", f"other-{before}", "resnet-spot-latest"}
    for name in (repository, "team"):
        ecr.create_repository(repositoryName=name)
        for tag in {f"resnet-spot-{hash}" for hash in (now, before, stopped)} | others:
            body = {"schemaVersion": 2, "mediaType": MANIFEST, "config": {"digest": f"sha256:{tag}"}, "layers": []}
            ecr.put_image(repositoryName=name, imageManifest=json.dumps(body), imageTag=tag)

    def tags(name: str) -> set[str]:
        return {one["imageTag"] for one in ecr.list_images(repositoryName=name)["imageIds"]}

    registry, operator = "123456789012.dkr.ecr.us-east-1.amazonaws.com", Operator(session())
    prune_images(operator, INSTALLATION, f"{registry}/{repository}:resnet-spot-{now}")
    assert tags(repository) == {f"resnet-spot-{now}"} | others
    assert len(tags("team")) == 7
    assert capsys.readouterr().out.count("deleted the image of an earlier deploy") == 2
    prune_images(operator, INSTALLATION, "ghcr.io/team/trainer:1")
    assert tags(repository) == others


def test_ctrl_c_ends_cdk_and_says_how_to_go_on(account: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_for_cdk(tmp_path, monkeypatch)
    node, started = tmp_path / "node", tmp_path / "started"
    node.write_text(f"#!/bin/sh\necho $$ > {started}.part && mv {started}.part {started}\nexec sleep 300\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "infra", *IMAGE, "deploy", "--recipe", "digits"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(started)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on from here" in error
    assert not Path(f"/proc/{started.read_text().strip()}").exists()


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_stacks_tell_what_a_launch_needs(account: Aws) -> None:
    deployed.deploy(account)
    outputs = [Operator(session()).outputs(name) for name in STACKS]
    assert Output.BUCKET in outputs[0]
    assert Output.SCHEDULER_ROLE in outputs[1]
