"""What the region has of the installation's settings: the types that AWS offers there, and the zones.

AWS may refuse a whole Auto Scaling group because of one type that its region does not have (EC2 Auto Scaling user
guide, "Setup overview for creating a mixed instances group", regional availability).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from infra.config import Installation
from infra.operate.installation.zones import zones_of_subnets
from infra.operate.session import Aws, AwsError, explained

TYPE_FIELDS = ("instance_types", "prepare_instance_types")


@dataclass(frozen=True, kw_only=True)
class Offered:
    """The installation as the region can have it."""

    installation: Installation
    left_out: tuple[str, ...] = ()  # the types that AWS does not offer in the region
    trouble: AwsError | None = None  # why AWS did not tell: then nothing is left out

    def line(self, region: str) -> str:
        """A line about what is left out. "" if nothing is."""
        return f"{region} does not offer {', '.join(self.left_out)}: left out" if self.left_out else ""


def offered_here(aws: Aws, installation: Installation) -> Offered:
    """Leave out the types that AWS does not offer in the region, and name the zones.

    A list of which AWS offers nothing stays as it is: the check of the types says so.
    """
    listed = {name: getattr(installation, name).split(",") for name in TYPE_FIELDS}
    try:
        there = offered_types(aws, {type for types in listed.values() for type in types})
        zones = "" if installation.vpc_id else ",".join(zones_of_subnets(aws, installation))
    except AwsError as error:
        return Offered(installation=installation, trouble=error)
    kept = {name: [type for type in types if type in there] or types for name, types in listed.items()}
    left_out = [type for name, types in listed.items() for type in types if type not in kept[name]]
    narrowed = replace(installation, zones=zones, **{name: ",".join(types) for name, types in kept.items()})
    return Offered(installation=narrowed, left_out=tuple(left_out))


def offered_types(aws: Aws, types: Iterable[str]) -> set[str]:
    """Those of the types that AWS offers in the region. Raises AwsError."""
    with explained("the types that the region offers"):
        pages = aws.client("ec2").get_paginator("describe_instance_type_offerings").paginate(
            LocationType="region", Filters=[{"Name": "instance-type", "Values": sorted(types)}]
        )  # fmt: skip
        return {one["InstanceType"] for page in pages for one in page["InstanceTypeOfferings"]}
