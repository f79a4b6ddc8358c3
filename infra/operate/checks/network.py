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


def public_access(wanted: Wanted) -> Finding:
    """Whether the account lets a machine with a public address out."""
    ec2, installation = wanted.aws.client("ec2"), wanted.installation
    options = ec2.describe_vpc_block_public_access_options()["VpcBlockPublicAccessOptions"]
    mode = options.get("InternetGatewayBlockMode", "off")
    if mode not in BLOCKING:
        return ok("the account does not block it for VPCs")
    strict = ", and allows no exclusion" if options.get("ExclusionsAllowed") == "not-allowed" else ""
    said = f"the account blocks it for VPCs here ({mode}){strict}"
    if installation.vpc_id:
        vpc_id = installation.vpc_id
        for subnet, table in _tables(wanted).items():
            is_hit = _gate_of(table).startswith("igw-") or mode == "block-bidirectional"
            if is_hit and not _is_excluded(ec2, {vpc_id, subnet}, mode):
                return wrong(f"{said}, and {subnet} goes out by {_gate_of(table)}", _exclude(vpc_id, mode))
        return ok(f"{said}, which does not concern {vpc_id}")
    if vpc_id := _own_vpc(wanted):
        if _is_excluded(ec2, {vpc_id}, mode):
            return ok(f"{said}, and {vpc_id} is excluded")
        return wrong(f"{said}, so no machine reaches the internet", _exclude(vpc_id, mode))
    return doubtful(f"{said}: after `make deploy NO_LAUNCH=1`, `make preflight` has the command that excludes its VPC")


def way_out(wanted: Wanted) -> Finding:
    """Whether each given subnet has a route to the internet."""
    if not wanted.installation.vpc_id:
        return unneeded("the stack's own VPC has a route")
    tables = _tables(wanted)
    for subnet, table in tables.items():
        if not _gate_of(table):
            said = f"{subnet} has no route there: its table {table['RouteTableId']} needs one to {EVERYWHERE}"
            return wrong(said, _add_route(wanted, table["RouteTableId"]))
    return ok(", ".join(sorted({f"by {_gate_of(table)}" for table in tables.values()})))


def s3_endpoint(wanted: Wanted) -> Finding:
    """Whether a machine's data takes the gateway endpoint, which costs nothing."""
    vpc_id, service = wanted.installation.vpc_id, f"com.amazonaws.{wanted.aws.region}.s3"
    if not vpc_id:
        return unneeded("the stack's own VPC has one")
    filters = [{"Name": "vpc-id", "Values": [vpc_id]}, {"Name": "service-name", "Values": [service]}]
    endpoints = wanted.aws.client("ec2").describe_vpc_endpoints(Filters=filters)["VpcEndpoints"]
    reached = {id for one in endpoints if one["VpcEndpointType"] == "Gateway" for id in one.get("RouteTableIds", [])}
    if missing := sorted({table["RouteTableId"] for table in _tables(wanted).values()} - reached):
        return doubtful(
            f"{', '.join(missing)} has none, so a NAT gateway would bill each gigabyte of data: aws ec2 "
            f"create-vpc-endpoint --vpc-id {vpc_id} --service-name {service} --route-table-ids {' '.join(missing)}"
        )
    return ok("a gateway, which costs nothing")


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


def _tables(wanted: Wanted) -> dict[str, dict[str, Any]]:
    """The route table of each given subnet: its own, else the main one of the VPC."""
    filters = [{"Name": "vpc-id", "Values": [wanted.installation.vpc_id]}]
    pages = wanted.aws.client("ec2").get_paginator("describe_route_tables").paginate(Filters=filters)
    tables = [table for page in pages for table in page["RouteTables"]]
    by_subnet = {one.get("SubnetId"): table for table in tables for one in table["Associations"]}
    main = next((table for table in tables for one in table["Associations"] if one.get("Main")), {"RouteTableId": "?"})
    return {subnet: by_subnet.get(subnet, main) for subnet in wanted.installation.subnet_ids.split(",")}


def _gate_of(table: Mapping[str, Any]) -> str:
    """Where the table sends what is for the internet. "" if nowhere. What is behind other gateways, nobody asks."""
    for route in table.get("Routes", []):
        if route.get("DestinationCidrBlock") == EVERYWHERE and route.get("State") == "active":
            kinds = ("GatewayId", "NatGatewayId", "TransitGatewayId", "NetworkInterfaceId", "VpcPeeringConnectionId")
            return next((str(route[kind]) for kind in kinds if route.get(kind)), "")
    return ""


def _add_route(wanted: Wanted, table: str) -> str:
    vpc_id = wanted.installation.vpc_id
    filters = [{"Name": "attachment.vpc-id", "Values": [vpc_id]}]
    gateways = wanted.aws.client("ec2").describe_internet_gateways(Filters=filters)["InternetGateways"]
    if not gateways:
        return f"aws ec2 create-internet-gateway (then attach it to {vpc_id})"
    gateway = gateways[0]["InternetGatewayId"]
    return f"aws ec2 create-route --route-table-id {table} --destination-cidr-block {EVERYWHERE} --gateway-id {gateway}"
