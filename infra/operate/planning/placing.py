"""Where a run's machines start: in every zone, or for a run on several machines in one, close to each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from infra.operate.planning.offering import Site
from infra.operate.planning.plan import Plan
from infra.operate.planning.start import Place
from infra.operate.session import Aws, explained
from infra.run.spec import Spec
from trainer.contract import UserError


def find_site(aws: Aws, place: Place, plan: Plan) -> tuple[Site | None, list[str]]:
    """Where the run's machines start, and the lines that say so. Raises UserError if there is no such place.

    None for a preparation, and for what an older version deployed: no run was ever put into one zone there.
    """
    spec = plan.spec
    if spec.nodes > 1 and not place.placement_group:
        raise UserError(
            f"NODES={spec.nodes}: what is deployed is made for runs on one machine: `make deploy NO_LAUNCH=1` first"
        )
    if spec.kind != "train" or not (place.subnet_ids or spec.zone):
        return None, []
    by_zone = subnets_by_zone(aws, place.subnet_ids)
    if spec.zone and spec.zone not in by_zone:
        raise UserError(f"ZONE={spec.zone!r} is none of this installation: use one of {', '.join(by_zone) or 'none'}")
    if spec.nodes == 1:
        return Site(subnet_ids=tuple(by_zone[spec.zone]) if spec.zone else place.subnet_ids), []
    zone, why = (spec.zone, "as you asked") if spec.zone else cheapest_zone(plan, by_zone)
    types = [one.type for one in plan.offered]
    site = Site(
        subnet_ids=tuple(by_zone[zone]), placement_group=place.placement_group,
        efa_types=types_with_efa(aws, types) if place.installation.has_efa else (),
    )  # fmt: skip
    return site, lines(spec, site, zone, why, [other for other in by_zone if other != zone])


def lines(spec: Spec, site: Site, zone: str, why: str, others: Sequence[str]) -> list[str]:
    other = f"; if none come: make stop, then make launch RUN={spec.run_id} ZONE={others[0]}" if others else ""
    found = [f"zone      {zone}, {why}; all machines in one placement group{other}"]
    if site.efa_types:
        found.append(f"network   Elastic Fabric Adapter on {', '.join(site.efa_types)}")
    return found


def subnets_by_zone(aws: Aws, subnet_ids: Sequence[str]) -> dict[str, list[str]]:
    if not subnet_ids:
        return {}
    with explained("the zones of the subnets"):
        subnets = aws.client("ec2").describe_subnets(SubnetIds=[*subnet_ids])["Subnets"]
    found: dict[str, list[str]] = {}
    for subnet in sorted(subnets, key=lambda one: str(one["AvailabilityZone"])):
        found.setdefault(subnet["AvailabilityZone"], []).append(subnet["SubnetId"])
    return found


def cheapest_zone(plan: Plan, zones: Mapping[str, object]) -> tuple[str, str]:
    """The zone with the cheapest image at the spot prices of now, and why. On demand, zones cost the same.

    AWS tells a spot price for each pool that there is. Raises UserError if no zone has any of the types.
    """
    prices = {
        zone: [
            plan.spot_zones[one.type][zone] / one.images_per_second
            for one in plan.offered
            if zone in plan.spot_zones.get(one.type, {})
        ]
        for zone in zones
    }
    if not plan.spot_zones:
        return next(iter(zones)), "the first one, since AWS told no spot prices"
    if not (found := {zone: min(given) for zone, given in prices.items() if given}):
        types = ", ".join(one.type for one in plan.offered)
        raise UserError(f"AWS tells no spot price of {types} in {', '.join(zones)}: use other TYPES=, or NODES=1")
    return min(found, key=lambda zone: (found[zone], zone)), "where an image is cheapest at the spot prices of now"


def types_with_efa(aws: Aws, types: Sequence[str]) -> tuple[str, ...]:
    """Those of the types that have an Elastic Fabric Adapter, as AWS says."""
    with explained("which types have an Elastic Fabric Adapter"):
        pages = aws.client("ec2").get_paginator("describe_instance_types").paginate(InstanceTypes=[*types])
        told = {one["InstanceType"]: one["NetworkInfo"] for page in pages for one in page["InstanceTypes"]}
    return tuple(type for type in types if told.get(type, {}).get("EfaSupported"))
