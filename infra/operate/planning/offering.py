"""What an Auto Scaling group offers to AWS: market, types, place and size of the machines that it launches next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from infra.config import efa_template
from infra.run.fleet import ON_DEMAND


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where a group's machines start. A cluster placement group takes subnets of one zone only."""

    subnet_ids: tuple[str, ...]
    placement_group: str = ""  # "": in none
    efa_types: tuple[str, ...] = ()  # types that start with an Elastic Fabric Adapter


def offer(autoscaling: Any, name: str, market: str, types: Sequence[str], nodes: int, site: Site | None = None) -> None:
    """Sets market, types (the preferred first) and place of the machines that the group launches from now on.

    Without `site` they start where they did. An empty name takes a group out of its placement group, says AWS of
    UpdateAutoScalingGroup.

    `nodes` is its new maximum: whoever may set its size, as its machines may, cannot go above it. If AWS has suspended
    the group, as it does with one that found no machine for more than 24 hours, the group goes on:
    https://docs.aws.amazon.com/autoscaling/ec2/userguide/as-suspend-resume-processes.html
    """
    (found,) = autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=[name])["AutoScalingGroups"]
    policy: dict[str, Any] = found["MixedInstancesPolicy"]
    policy["LaunchTemplate"]["LaunchTemplateSpecification"].pop("LaunchTemplateName", None)  # id or name, not both
    with_efa = {"LaunchTemplateSpecification": {"LaunchTemplateName": efa_template(name), "Version": "$Latest"}}
    has_efa = site.efa_types if site else ()
    policy["LaunchTemplate"]["Overrides"] = [
        {"InstanceType": type} | (with_efa if type in has_efa else {}) for type in types
    ]
    policy["InstancesDistribution"] = _distribution(policy, market)
    place = {"VPCZoneIdentifier": ",".join(site.subnet_ids), "PlacementGroup": site.placement_group} if site else {}
    place = {name: value for name, value in place.items() if value != found.get(name, "")}  # a run on one asks for none
    autoscaling.update_auto_scaling_group(
        AutoScalingGroupName=name, MixedInstancesPolicy=policy, MaxSize=nodes, **place
    )
    if found.get("SuspendedProcesses"):
        autoscaling.resume_processes(AutoScalingGroupName=name)


def leave_placement_groups(autoscaling: Any, names: Sequence[str]) -> None:
    """Takes groups out of the placement group of a run of several, which is over.

    A cluster placement group takes one zone. So CloudFormation could give a group that has one no other zones:
    https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_UpdateAutoScalingGroup.html
    """
    for found in autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=[*names])["AutoScalingGroups"]:
        if found.get("PlacementGroup"):
            autoscaling.update_auto_scaling_group(
                AutoScalingGroupName=found["AutoScalingGroupName"], PlacementGroup=""
            )  # fmt: skip


def _distribution(policy: dict[str, Any], market: str) -> dict[str, Any]:
    share = 100 if market == ON_DEMAND else 0
    known: dict[str, Any] = policy.get("InstancesDistribution", {})
    return known | {"OnDemandBaseCapacity": 0, "OnDemandPercentageAboveBaseCapacity": share}
