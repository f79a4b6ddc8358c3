"""Regions that lack types, a zone or a default VPC: a deploy takes what there is, and says what is left out.

Which region offers what is moto's copy of AWS's own answers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import boto3
import pytest
from moto.ec2.models.instance_types import INSTANCE_TYPE_OFFERINGS

from infra.__main__ import COMMANDS
from infra.config import Installation
from infra.operate.checks import machines
from infra.operate.checks.finding import Wanted
from infra.operate.installation.offers import offered_here
from infra.operate.planning import catalog
from infra.operate.planning.options import Request
from infra.operate.session import Aws as Operator
from tests.emulator.aws import Aws
from tests.infra.operator import GIVEN_IMAGE, infra, prepare_account, rows, stand_in_for_cdk

Run = Callable[..., tuple[int, str, str]]
pytestmark = pytest.mark.usefixtures("served")
OFFERED = {region: {one["InstanceType"] for one in all} for region, all in INSTANCE_TYPE_OFFERINGS["region"].items()}
DEPLOY = ("-c", f"image_uri={GIVEN_IMAGE}", "deploy", "--no-launch", "--recipe", "digits")


def context_of(call: list[str]) -> dict[str, str]:
    """The settings that CDK is given."""
    pairs = (word.removeprefix("resnet-spot:").partition("=") for word in call if word.startswith("resnet-spot:"))
    return {key: value for key, _, value in pairs}


@pytest.fixture
def abroad(aws: Aws, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Aws:
    """The account, prepared in the region that the test names."""
    there = Aws(aws.endpoint, region=request.param)
    prepare_account(there)
    monkeypatch.setenv("AWS_REGION", request.param)
    return there


@pytest.mark.parametrize("region", OFFERED)
def test_of_each_region_the_types_are_those_that_it_offers(aws: Aws, region: str) -> None:
    operator, all_types = Operator(boto3.Session(region_name=region)), Installation()
    found = offered_here(operator, all_types)
    told = machines.instance_types(
        Wanted(aws=operator, installation=found.installation, request=Request(), offered=found)
    )
    lists = {"instance_types": all_types.instance_types, "prepare_instance_types": all_types.prepare_instance_types}
    there = {name: [type for type in types.split(",") if type in OFFERED[region]] for name, types in lists.items()}
    if all(there.values()):
        assert {name: getattr(found.installation, name).split(",") for name in lists} == there
        missing = [type for types in lists.values() for type in types.split(",") if type not in OFFERED[region]]
        line = f"; {region} does not offer {', '.join(missing)}: left out" if missing else ""
        assert (told.state, told.said) == ("ok", f"{len(there['instance_types'])} types{line}")
    else:
        others = [one.name for one in catalog.TYPES.values() if one.gpu and one.name in OFFERED[region]]
        assert told.said.startswith(f"{region} offers no machine of instance_types: g6.xlarge, ")
        assert told.fix.endswith(f"-c instance_types={','.join(others)} deploy" if others else "AWS_REGION=us-east-1")
    assert len(found.installation.zones.split(",")) == min(3, len(zones_of(operator)))


def zones_of(operator: Operator) -> list[str]:
    return [one["ZoneName"] for one in operator.client("ec2").describe_availability_zones()["AvailabilityZones"]]


@pytest.mark.parametrize("abroad", ["eu-west-1"], indirect=True)
def test_a_deploy_leaves_out_what_the_region_lacks_for_both_kinds_of_machines_and_says_so(
    abroad: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = stand_in_for_cdk(tmp_path, monkeypatch)
    lists = (
        "-c",
        "instance_types=g6.xlarge,g5.xlarge,g5.2xlarge",
        "-c",
        "prepare_instance_types=c7a.2xlarge,c1.4xlarge",
    )
    ended = infra(*lists, *DEPLOY)
    assert ended.code == 0, ended.said + ended.error
    line = "eu-west-1 does not offer g6.xlarge, c1.4xlarge: left out"
    assert rows(ended.said)["instance types"] == ("ok", f"2 types; {line}")
    assert ended.said.splitlines().count(line) == 1
    (call,) = calls()
    given = context_of(call)
    assert given["instance_types"] == "g5.xlarge,g5.2xlarge"
    assert given["prepare_instance_types"] == "c7a.2xlarge"


@pytest.mark.parametrize("abroad", ["us-west-1"], indirect=True)
def test_a_region_of_two_zones_uses_both_without_being_told(
    abroad: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = stand_in_for_cdk(tmp_path, monkeypatch)
    ended = infra("-c", "instance_types=g4dn.xlarge", *DEPLOY)
    assert ended.code == 0, ended.said + ended.error
    assert rows(ended.said)["region"] == ("ok", "us-west-1, 2 zones")
    assert context_of(calls()[0])["zones"] == "us-west-1a,us-west-1b"


def test_an_account_without_a_default_vpc_names_its_zones_all_the_same(
    aws: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_account(aws)
    ec2 = aws.client("ec2")
    for subnet in ec2.describe_subnets()["Subnets"]:
        ec2.delete_subnet(SubnetId=subnet["SubnetId"])
    for vpc in ec2.describe_vpcs()["Vpcs"]:
        ec2.delete_vpc(VpcId=vpc["VpcId"])
    calls = stand_in_for_cdk(tmp_path, monkeypatch)
    ended = infra(*DEPLOY)
    assert ended.code == 0, ended.said + ended.error
    assert rows(ended.said)["VPC"] == ("ok", "0 of 5 in use, one is needed")
    assert len(context_of(calls()[0])["zones"].split(",")) == 3


@pytest.mark.parametrize(
    ("region", "partition"),
    [("cn-north-1", "aws-cn"), ("us-gov-west-1", "aws-us-gov"), ("eusc-de-east-1", "aws-eusc")],
)
def test_china_govcloud_and_the_sovereign_cloud_are_refused_before_anybody_is_asked(
    aws: Aws, run: Run, monkeypatch: pytest.MonkeyPatch, region: str, partition: str
) -> None:
    monkeypatch.setenv("AWS_REGION", region)
    for command in COMMANDS:
        code, said, error = run(command)
        assert (code, said) == (2, ""), command
        assert f"the region {region} is in AWS's partition {partition}, for which this project has no" in error
    assert aws.calls() == []


def test_where_aws_does_not_tell_what_it_offers_nothing_is_left_out(aws: Aws) -> None:
    aws.fault("ec2.DescribeInstanceTypeOfferings", code="UnauthorizedOperation")
    found = offered_here(Operator(boto3.Session()), Installation())
    assert (found.installation, found.left_out) == (Installation(), ())
    assert "UnauthorizedOperation" in str(found.trouble)
