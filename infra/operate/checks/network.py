"""The checks of `preflight` on the machines' network: the VPC, and its way to the internet and to S3.

A machine needs ECR, Logs, Secrets Manager and the hub. Without a way out it would start, cost and train nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import botocore.exceptions

from infra.operate.checks.account import quota_value
from infra.operate.checks.finding import Finding, Wanted, doubtful, ok, unneeded, wrong
from infra.operate.installation.stack_states import has_stack

VPC_QUOTA = "L-F678F1CE"
EVERYWHERE = "0.0.0.0/0"
BLOCKING = {  # mode of VPC block public access: the exclusion that lets a machine with a public address out
    "block-bidirectional": "allow-egress",
    "block-ingress": "allow-bidirectional",  # "egress-only applies when BPA is set to bidirectional" (VPC user guide)
}


def vpc(wanted: Wanted) -> Finding:
    ec2, installation = wanted.aws.client("ec2"), wanted.installation
    if installation.vpc_id:
        return _given_vpc(wanted)
    if has_stack(wanted.aws, installation.training_stack):
        return unneeded("the stack has its own already")
    there, allowed = len(ec2.describe_vpcs()["Vpcs"]), quota_value(wanted, VPC_QUOTA, "vpc")
    if there >= allowed:
        return wrong(
            f"{there} VPCs of {allowed:g} are there, one more is needed (or set vpc_id and subnet_ids in cdk.json)",
            "aws service-quotas request-service-quota-increase --service-code vpc "
            f"--quota-code {VPC_QUOTA} --desired-value {allowed + 1:g}",
        )
    return ok(f"{there} of {allowed:g} in use, one is needed")


def _given_vpc(wanted: Wanted) -> Finding:
    installation, ids = wanted.installation, wanted.installation.subnet_ids.split(",")
    list_them = f"aws ec2 describe-subnets --filters Name=vpc-id,Values={installation.vpc_id}"
    try:
        subnets = wanted.aws.client("ec2").describe_subnets(SubnetIds=ids)["Subnets"]
    except botocore.exceptions.ClientError as error:
        if "NotFound" not in error.response["Error"].get("Code", ""):
            raise
        return wrong(error.response["Error"]["Message"], list_them)
    if strangers := [one["SubnetId"] for one in subnets if one["VpcId"] != installation.vpc_id]:
        return wrong(f"{', '.join(strangers)} are not in {installation.vpc_id}", list_them)
    return ok(f"{installation.vpc_id}, {len(subnets)} subnets")


def way_out(wanted: Wanted) -> Finding:
    """Whether a machine can reach the internet, and S3 without paying for it."""
    ec2, installation = wanted.aws.client("ec2"), wanted.installation
    options = ec2.describe_vpc_block_public_access_options()["VpcBlockPublicAccessOptions"]
    mode = options.get("InternetGatewayBlockMode", "off")
    strict = ", and allows no exclusion" if options.get("ExclusionsAllowed") == "not-allowed" else ""
    blocked = f"the account blocks public access of VPCs here ({mode}){strict}" if mode in BLOCKING else ""
    if installation.vpc_id:
        return _given_way_out(wanted, mode, blocked)
    if not blocked:
        return ok("public access of VPCs is not blocked")
    if vpc_id := _own_vpc(wanted):
        if _is_excluded(ec2, {vpc_id}, mode):
            return ok(f"{blocked}, and {vpc_id} is excluded")
        return wrong(f"{blocked}, so no machine reaches the internet", _exclude(vpc_id, mode))
    return doubtful(
        f"{blocked}: after `make deploy NO_LAUNCH=1`, `make preflight` has the command that excludes its VPC"
    )


def _exclude(vpc_id: str, mode: str) -> str:
    exclusion = f"--internet-gateway-exclusion-mode {BLOCKING[mode]}"
    return f"aws ec2 create-vpc-block-public-access-exclusion {exclusion} --vpc-id {vpc_id}"


def _is_excluded(ec2: Any, ids: Collection[str], mode: str) -> bool:
    enough = ("allow-bidirectional", BLOCKING[mode])
    return any(
        one["ResourceArn"].rpartition("/")[2] in ids
        and one["InternetGatewayExclusionMode"] in enough
        and one["State"] in ("create-complete", "update-complete")
        for one in ec2.describe_vpc_block_public_access_exclusions(MaxResults=1000)["VpcBlockPublicAccessExclusions"]
    )


def _own_vpc(wanted: Wanted) -> str:
    """The VPC of the training stack. "" if it is not deployed."""
    stack = wanted.installation.training_stack
    if not has_stack(wanted.aws, stack):
        return ""
    pages = wanted.aws.client("cloudformation").get_paginator("list_stack_resources").paginate(StackName=stack)
    parts = [part for page in pages for part in page["StackResourceSummaries"]]
    return next((part["PhysicalResourceId"] for part in parts if part["ResourceType"] == "AWS::EC2::VPC"), "")


def _given_way_out(wanted: Wanted, mode: str, blocked: str) -> Finding:
    ec2, vpc_id = wanted.aws.client("ec2"), wanted.installation.vpc_id
    tables = _tables_of(ec2, vpc_id, wanted.installation.subnet_ids.split(","))
    gates = {subnet: _gate_of(table) for subnet, table in tables.items()}
    for subnet, gate in gates.items():
        if not gate:
            table = tables[subnet]["RouteTableId"]
            said = f"{subnet} has no route to the internet: its table {table} needs one to {EVERYWHERE}"
            return wrong(said, _add_route(ec2, vpc_id, table))
        is_hit = blocked and (gate.startswith("igw-") or mode == "block-bidirectional")
        if is_hit and not _is_excluded(ec2, {vpc_id, subnet}, mode):
            return wrong(f"{blocked}, and {subnet} goes out by {gate}", _exclude(vpc_id, mode))
    said = ", ".join(sorted({f"by {gate}" for gate in gates.values()}))
    missing = _without_s3(wanted, {table["RouteTableId"] for table in tables.values()})
    return doubtful(f"{said}; {missing}") if missing else ok(f"{said}, and to S3 by a gateway endpoint")


def _without_s3(wanted: Wanted, tables: Collection[str]) -> str:
    """Which route tables lack the gateway endpoint of S3, and the command that makes one. "" if none does."""
    ec2, vpc_id, service = wanted.aws.client("ec2"), wanted.installation.vpc_id, f"com.amazonaws.{wanted.aws.region}.s3"
    filters = [{"Name": "vpc-id", "Values": [vpc_id]}, {"Name": "service-name", "Values": [service]}]
    endpoints = ec2.describe_vpc_endpoints(Filters=filters)["VpcEndpoints"]
    reached = {id for one in endpoints if one["VpcEndpointType"] == "Gateway" for id in one.get("RouteTableIds", [])}
    if not (missing := sorted({*tables} - reached)):
        return ""
    return (
        f"no S3 gateway endpoint in {', '.join(missing)}, so a NAT gateway would bill each gigabyte of data: aws ec2 "
        f"create-vpc-endpoint --vpc-id {vpc_id} --service-name {service} --route-table-ids {' '.join(missing)}"
    )


def _tables_of(ec2: Any, vpc_id: str, subnets: Collection[str]) -> dict[str, dict[str, Any]]:
    """The route table of each subnet: its own, else the main one of the VPC."""
    filters = [{"Name": "vpc-id", "Values": [vpc_id]}]
    pages = ec2.get_paginator("describe_route_tables").paginate(Filters=filters)
    tables = [table for page in pages for table in page["RouteTables"]]
    by_subnet = {one.get("SubnetId"): table for table in tables for one in table["Associations"]}
    main = next((table for table in tables for one in table["Associations"] if one.get("Main")), {"RouteTableId": "?"})
    return {subnet: by_subnet.get(subnet, main) for subnet in subnets}


def _gate_of(table: Mapping[str, Any]) -> str:
    """Where the table sends what is for the internet. "" if nowhere. What is behind other gateways, nobody asks."""
    for route in table.get("Routes", []):
        if route.get("DestinationCidrBlock") == EVERYWHERE and route.get("State") == "active":
            kinds = ("GatewayId", "NatGatewayId", "TransitGatewayId", "NetworkInterfaceId", "VpcPeeringConnectionId")
            return next((str(route[kind]) for kind in kinds if route.get(kind)), "")
    return ""


def _add_route(ec2: Any, vpc_id: str, table: str) -> str:
    filters = [{"Name": "attachment.vpc-id", "Values": [vpc_id]}]
    gateways = ec2.describe_internet_gateways(Filters=filters)["InternetGateways"]
    if not gateways:
        return f"aws ec2 create-internet-gateway (then attach it to {vpc_id})"
    gateway = gateways[0]["InternetGatewayId"]
    return f"aws ec2 create-route --route-table-id {table} --destination-cidr-block {EVERYWHERE} --gateway-id {gateway}"
