"""The zones of the machines. CDK gets their names: CloudFormation alone would use only zones with a default subnet."""

from __future__ import annotations

from collections import Counter
from ipaddress import ip_network

from infra.config import ZONES, Installation
from infra.operate.installation.stack_states import has_stack
from infra.operate.session import Aws, explained


def zones_of_subnets(aws: Aws, installation: Installation) -> list[str]:
    """The zones for a deploy: those that the context names, else those of the deployed subnets, else the best ones.

    Other zones than the deployed ones would replace the subnets.
    """
    if installation.zones:
        return installation.zones.split(",")
    return _deployed(aws, installation) or _best(aws, installation)


def zones_of_region(aws: Aws) -> list[str]:
    zones = aws.client("ec2").describe_availability_zones()["AvailabilityZones"]
    return sorted(one["ZoneName"] for one in zones if one.get("ZoneType", "availability-zone") == "availability-zone")


def _deployed(aws: Aws, installation: Installation) -> list[str]:
    name = installation.training_stack
    with explained(f"the zones of {name}"):
        if not has_stack(aws, name):
            return []
        pages = aws.client("cloudformation").get_paginator("list_stack_resources").paginate(StackName=name)
        ids = [
            part["PhysicalResourceId"]
            for page in pages
            for part in page["StackResourceSummaries"]
            if part["ResourceType"] == "AWS::EC2::Subnet" and part.get("PhysicalResourceId")
        ]
        if not ids:
            return []
        subnets = aws.client("ec2").describe_subnets(Filters=[{"Name": "subnet-id", "Values": ids}])["Subnets"]
    subnets.sort(key=lambda one: ip_network(one["CidrBlock"]))  # the order in which they were named
    return [one["AvailabilityZone"] for one in subnets]


def _best(aws: Aws, installation: Installation) -> list[str]:
    """The zones that offer the most types."""
    types = installation.instance_types.split(",")
    with explained("the zones that offer the types"):
        pages = aws.client("ec2").get_paginator("describe_instance_type_offerings").paginate(
            LocationType="availability-zone", Filters=[{"Name": "instance-type", "Values": types}]
        )  # fmt: skip
        offered = Counter(one["Location"] for page in pages for one in page["InstanceTypeOfferings"])
        zones = zones_of_region(aws)
    return sorted(sorted(zones, key=lambda zone: -offered[zone])[:ZONES])
