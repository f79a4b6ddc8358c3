"""preflight of the network: a given VPC's routes and S3 endpoint, and an account that blocks public access of VPCs."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.emulator.aws import Aws
from tests.infra import deployed
from tests.infra.deployed import Deployed
from tests.infra.operator import GIVEN_IMAGE, fixes, infra, prepare_account, rows, stand_in_for_cdk

pytestmark = pytest.mark.usefixtures("served")
Look = Callable[..., str]


@pytest.fixture
def given(ready: Aws) -> dict[str, str]:
    """A VPC of the user's, with two subnets and no way out."""
    ec2 = ready.client("ec2")
    vpc = ec2.create_vpc(CidrBlock="10.1.0.0/16")["Vpc"]["VpcId"]
    subnets = [
        ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.1.{n}.0/24", AvailabilityZone=f"us-east-1{zone}")["Subnet"]
        for n, zone in enumerate("ab")
    ]
    return {"vpc_id": vpc, "subnet_ids": ",".join(one["SubnetId"] for one in subnets)}


def ask(aws: Aws, command: str) -> dict[str, Any]:
    """Do what a fix says: `aws ec2 create-route --route-table-id …`."""
    service, method, *options = shlex.split(command)[1:]
    call = getattr(aws.client(service), method.replace("-", "_"))
    words = iter(options)
    arguments: dict[str, Any] = {}
    for flag in words:
        name = "".join(part.capitalize() for part in flag.removeprefix("--").split("-"))
        arguments[name] = next(words)
    answer: dict[str, Any] = call(**arguments)
    return answer


def main_table(aws: Aws, vpc: str) -> str:
    (table,) = aws.client("ec2").describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["RouteTables"]
    return str(table["RouteTableId"])


def attach_gateway(aws: Aws, vpc: str) -> str:
    ec2 = aws.client("ec2")
    gateway = str(ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"])
    ec2.attach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
    return gateway


def test_a_given_vpc_without_a_route_out_is_told_with_the_commands_that_make_one(
    ready: Aws, given: dict[str, str], look: Look
) -> None:
    vpc, first = given["vpc_id"], given["subnet_ids"].partition(",")[0]
    table = main_table(ready, vpc)
    said = look(**given)
    assert rows(said)["internet"][1] == f"{first} has no route there: its table {table} needs one to 0.0.0.0/0"
    assert fixes(said)["internet"] == f"aws ec2 create-internet-gateway (then attach it to {vpc})"
    gateway = attach_gateway(ready, vpc)
    ask(ready, fixes(look(**given))["internet"])
    found = rows(look(**given))
    assert found["internet"] == ("ok", f"by {gateway}")
    state, text = found["S3 endpoint"]
    assert state == "warning"
    assert text.startswith(f"{table} has none, so a NAT gateway would bill each gigabyte of data: aws ec2 create-vpc-")
    ready.client("ec2").create_vpc_endpoint(
        VpcId=vpc, ServiceName="com.amazonaws.us-east-1.s3", RouteTableIds=[table], VpcEndpointType="Gateway"
    )
    assert rows(look(**given))["S3 endpoint"] == ("ok", "a gateway, which costs nothing")


def test_a_subnet_with_a_table_of_its_own_is_judged_by_that_one(ready: Aws, given: dict[str, str], look: Look) -> None:
    ec2, vpc = ready.client("ec2"), given["vpc_id"]
    first, second = given["subnet_ids"].split(",")
    gateway = attach_gateway(ready, vpc)
    ec2.create_route(RouteTableId=main_table(ready, vpc), DestinationCidrBlock="0.0.0.0/0", GatewayId=gateway)
    lonely = ec2.create_route_table(VpcId=vpc)["RouteTable"]["RouteTableId"]
    ec2.associate_route_table(RouteTableId=lonely, SubnetId=second)
    assert rows(look(**given))["internet"][1].startswith(f"{second} has no route there: its table {lonely}")
    nat = ec2.create_nat_gateway(SubnetId=first, ConnectivityType="private")["NatGateway"]["NatGatewayId"]
    ec2.create_route(RouteTableId=lonely, DestinationCidrBlock="0.0.0.0/0", NatGatewayId=nat)
    assert rows(look(**given))["internet"] == ("ok", f"by {gateway}, by {nat}")


@pytest.mark.parametrize(
    ("mode", "too_little", "enough"),
    [
        ("block-bidirectional", "", "allow-egress"),
        ("block-ingress", "allow-egress", "allow-bidirectional"),
    ],
)
def test_blocked_public_access_is_told_and_its_command_excludes_the_vpc(
    aws: Aws, look: Look, mode: str, too_little: str, enough: str
) -> None:
    prepare_account(aws)
    aws.set(block_public_access=mode)
    state, text = rows(look())["public access"]
    assert state == "warning"  # the VPC is not there yet
    assert text.startswith(f"the account blocks it for VPCs here ({mode}): after `make deploy NO_LAUNCH=1`")
    deployed.deploy(aws)
    said = look()
    assert rows(said)["public access"][0] == "failed"
    exclude = fixes(said)["public access"]
    assert f"--internet-gateway-exclusion-mode {enough} --vpc-id vpc-" in exclude
    if too_little:
        ask(aws, exclude.replace(enough, too_little))
        assert rows(look())["public access"][0] == "failed"
    ask(aws, exclude)
    assert rows(look())["public access"][0] == "ok"


def test_a_given_vpc_is_blocked_only_where_it_goes_out_by_an_internet_gateway(
    ready: Aws, given: dict[str, str], look: Look
) -> None:
    ec2, vpc = ready.client("ec2"), given["vpc_id"]
    first, _ = given["subnet_ids"].split(",")
    table, gateway = main_table(ready, vpc), attach_gateway(ready, vpc)
    ec2.create_route(RouteTableId=table, DestinationCidrBlock="0.0.0.0/0", GatewayId=gateway)
    ready.set(block_public_access="block-ingress")
    assert rows(look(**given))["public access"][1].endswith(f"(block-ingress), and {first} goes out by {gateway}")
    ec2.delete_route(RouteTableId=table, DestinationCidrBlock="0.0.0.0/0")
    nat = ec2.create_nat_gateway(SubnetId=first, ConnectivityType="private")["NatGateway"]["NatGatewayId"]
    ec2.create_route(RouteTableId=table, DestinationCidrBlock="0.0.0.0/0", NatGatewayId=nat)
    assert rows(look(**given))["public access"][0] == "ok"
    ready.set(block_public_access="block-bidirectional")
    assert rows(look(**given))["public access"][0] == "failed"


def test_a_deploy_that_makes_a_blocked_vpc_launches_nothing(
    aws: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_account(aws)
    aws.set(block_public_access="block-ingress")
    stand_in_for_cdk(tmp_path, monkeypatch, deploys=True)
    ended = infra("-c", f"image_uri={GIVEN_IMAGE}", "deploy", "--recipe", "digits")
    assert ended.code == 3, ended.said + ended.error
    assert "not launched, for want of public access: the account blocks it for VPCs here (block-ingress)" in ended.said
    assert "create-vpc-block-public-access-exclusion" in ended.said
    assert Deployed(aws).desired() == 0
