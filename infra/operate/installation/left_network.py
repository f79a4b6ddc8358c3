"""What AWS still has of the installation's own VPC: its parts, and what others have put into it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from infra.config import Installation, Tag
from infra.operate.installation.left_over import LeftOver, tagged
from infra.operate.session import Aws

GOING = ("deleting", "deleted")
# What a VPC must lose before it can go: boto3's method, its list, the id in it, the command, all in that order.
VPC_PARTS = (
    ("VPC endpoint", "vpc_endpoints", "VpcEndpoints", "VpcEndpointId"),
    ("network interface", "network_interfaces", "NetworkInterfaces", "NetworkInterfaceId"),
    ("subnet", "subnets", "Subnets", "SubnetId"),
    ("internet gateway", "internet_gateways", "InternetGateways", "InternetGatewayId"),
    ("route table", "route_tables", "RouteTables", "RouteTableId"),
    ("security group", "security_groups", "SecurityGroups", "GroupId"),
    ("VPC", "vpcs", "Vpcs", "VpcId"),
)


def vpc_parts(aws: Aws, installation: Installation) -> Iterator[LeftOver]:
    ec2 = aws.client("ec2")

    def delete(method: str, key: str, id: str, part: dict[str, Any]) -> None:
        if method == "vpc_endpoints":
            ec2.delete_vpc_endpoints(VpcEndpointIds=[id])
            return
        for attachment in part.get("Attachments", []) if method == "internet_gateways" else ():
            ec2.detach_internet_gateway(InternetGatewayId=id, VpcId=attachment["VpcId"])
        getattr(ec2, f"delete_{method.removesuffix('s')}")(**{key: id})

    for what, method, listed, key in VPC_PARTS:
        for part in getattr(ec2, f"describe_{method}")(Filters=tagged(installation))[listed]:
            if str(part.get("State", "")).lower() in GOING:
                continue
            id = part[key]
            yield LeftOver(what, id, _command(method, key, id), partial(delete, method, key, id, part))


def _command(method: str, key: str, id: str) -> str:
    if method == "vpc_endpoints":
        return f"aws ec2 delete-vpc-endpoints --vpc-endpoint-ids {id}"
    flag = re.sub("(?<!^)([A-Z])", r"-\1", key).lower()
    return f"aws ec2 delete-{method.removesuffix('s').replace('_', '-')} --{flag} {id}"


def strangers(aws: Aws, installation: Installation) -> Iterator[LeftOver]:
    """What others have put into our VPC, which cannot be deleted before. Nothing here deletes what is not ours.

    GuardDuty's agent management puts an endpoint and a security group into each VPC with machines, and leaves the
    endpoint there (GuardDuty user guide, "Disabling, uninstalling, and cleaning up resources in Runtime Monitoring").
    """
    ec2 = aws.client("ec2")
    for vpc in [one["VpcId"] for one in ec2.describe_vpcs(Filters=tagged(installation))["Vpcs"]]:
        for what, method, listed, key in VPC_PARTS:
            if method not in ("vpc_endpoints", "network_interfaces", "subnets", "security_groups"):
                continue
            found = getattr(ec2, f"describe_{method}")(Filters=[{"Name": "vpc-id", "Values": [vpc]}])[listed]
            for part in found:
                if whose := _stranger(part):
                    command = _command(method, key, part[key])
                    yield LeftOver(f"{what} in our VPC, {whose}", part[key], command, is_foreign=True)


def _stranger(part: Mapping[str, Any]) -> str:
    """Whose the part of the VPC is. "" if it is ours, goes by itself, or goes with what it belongs to."""
    tags = {tag["Key"]: tag["Value"] for tag in part.get("Tags", part.get("TagSet", []))}
    name = part.get("GroupName", "")
    goes_along = part.get("RequesterManaged") or name == "default" or "Attachment" in part
    if Tag.INSTALLATION in tags or goes_along or str(part.get("State", "")).lower() in GOING:
        return ""
    if "GuardDutyManaged" in tags or name.startswith("GuardDutyManaged"):
        return "of GuardDuty"
    stack = tags.get("aws:cloudformation:stack-name")
    return f"of the stack {stack}" if stack else "which this project did not make"
