"""The machines of an installation and the Auto Scaling groups that hold them, as plain functions on boto3 clients.

Not here: when to do what (the guard and the operator's commands decide), prices, and anything of a run's files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from infra.config import Tag

Clients = Callable[[str], Any]  # a boto3 client by the name of its service
SPOT, ON_DEMAND = "spot", "on-demand"
BILLING_STATES = ("pending", "running", "stopping", "stopped")  # a stopped one still bills its disk
GROUP_TAG = "aws:autoscaling:groupName"  # AWS puts it on what a group launches


@dataclass(frozen=True, kw_only=True)
class FleetMachine:
    """One EC2 instance of the installation. Times are Unix seconds."""

    id: str
    type: str
    zone: str
    market: str
    state: str  # EC2's word: pending, running, shutting-down, terminated, stopping, stopped
    launched: float
    ended: float = 0.0  # when it began to shut down: what it bills to; 0: it still bills, or EC2 does not say
    run_id: str = ""  # its tag; "" where it has none
    deadline: float = 0.0  # its tag; 0 where it has none
    group: str = ""  # the Auto Scaling group that launched it

    @property
    def is_billing(self) -> bool:
        return self.state in BILLING_STATES


@dataclass(frozen=True, kw_only=True)
class Group:
    """An Auto Scaling group now. The run and its deadline are its tags, which it gives to what it launches."""

    name: str
    desired: int
    maximum: int
    instance_ids: tuple[str, ...] = ()  # those it counts, going ones among them
    run_id: str = ""
    deadline: float = 0.0
    market: str = SPOT
    types: tuple[str, ...] = ()


@dataclass(frozen=True)
class Refusal:
    """Why a group did not get a machine."""

    at: float
    reason: str  # a sentence
    fix: str = ""  # what to do; "" where only AWS's own words are known

    def __str__(self) -> str:
        return f"{self.reason}: {self.fix}" if self.fix else self.reason


def machines(ec2: Any, installation_name: str, run_id: str = "") -> list[FleetMachine]:
    """All that EC2 still shows (terminated ones for about an hour), of one run where it is given; oldest first."""
    filters = [{"Name": f"tag:{Tag.INSTALLATION}", "Values": [installation_name]}]
    if run_id:
        filters.append({"Name": f"tag:{Tag.RUN}", "Values": [run_id]})
    pages = _pages(ec2.describe_instances, Filters=filters)
    found = [
        _machine(instance) for page in pages for reservation in page["Reservations"]
        for instance in reservation["Instances"]
    ]  # fmt: skip
    return sorted(found, key=lambda machine: (machine.launched, machine.id))


def group_state(autoscaling: Any, name: str) -> Group | None:
    """None where there is no such group (not deployed)."""
    if not (found := autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=[name])["AutoScalingGroups"]):
        return None
    tags = {tag["Key"]: tag["Value"] for tag in found[0].get("Tags", [])}
    policy = found[0].get("MixedInstancesPolicy", {})
    on_demand = policy.get("InstancesDistribution", {}).get("OnDemandPercentageAboveBaseCapacity", 100)
    return Group(
        name=name,
        desired=found[0]["DesiredCapacity"],
        maximum=found[0]["MaxSize"],
        instance_ids=tuple(instance["InstanceId"] for instance in found[0].get("Instances", [])),
        run_id=tags.get(Tag.RUN, ""),
        deadline=_seconds(tags.get(Tag.DEADLINE, "")),
        market=ON_DEMAND if int(on_demand) == 100 else SPOT,
        types=tuple(o["InstanceType"] for o in policy.get("LaunchTemplate", {}).get("Overrides", [])),
    )


def assign(autoscaling: Any, name: str, run_id: str, deadline: float) -> None:
    """Tag the group, and so all that it launches from now on, with the run and its deadline."""
    tags = {Tag.RUN: run_id, Tag.DEADLINE: str(int(deadline))}
    autoscaling.create_or_update_tags(
        Tags=[
            {"ResourceId": name, "ResourceType": "auto-scaling-group", "PropagateAtLaunch": True, "Key": k, "Value": v}
            for k, v in tags.items()
        ]
    )


def scale(autoscaling: Any, name: str, nodes: int) -> None:
    autoscaling.set_desired_capacity(AutoScalingGroupName=name, DesiredCapacity=nodes, HonorCooldown=False)


def scale_to_zero(autoscaling: Any, name: str) -> None:
    """Also where someone has raised the group's minimum by hand, below which AWS refuses to go."""
    try:
        scale(autoscaling, name, 0)
    except autoscaling.exceptions.ClientError as error:
        if error.response["Error"].get("Code") != "ValidationError":
            raise
        autoscaling.update_auto_scaling_group(AutoScalingGroupName=name, MinSize=0, DesiredCapacity=0)


def use_market(autoscaling: Any, name: str, market: str) -> None:
    """What the group launches from now on; machines that run stay."""
    # Without the launch template, which stays: to name it, the caller would have to be allowed ec2:RunInstances.
    policy = {"InstancesDistribution": _distribution(_policy(autoscaling, name), market)}
    autoscaling.update_auto_scaling_group(AutoScalingGroupName=name, MixedInstancesPolicy=policy)


def offer(autoscaling: Any, name: str, market: str, types: Sequence[str]) -> None:
    """The market and the types that the group may launch from, the preferred first."""
    policy = _policy(autoscaling, name)
    policy["LaunchTemplate"]["Overrides"] = [{"InstanceType": type} for type in types]
    policy["InstancesDistribution"] = _distribution(policy, market)
    autoscaling.update_auto_scaling_group(AutoScalingGroupName=name, MixedInstancesPolicy=policy)


def why_no_machine(autoscaling: Any, name: str, since: float = 0.0) -> list[Refusal]:
    """The failed launches after the last one that succeeded, and not before `since`; newest first, none twice."""
    refusals: dict[str, Refusal] = {}
    for page in _pages(autoscaling.describe_scaling_activities, AutoScalingGroupName=name):
        for activity in page["Activities"]:  # AWS gives the newest first
            at = activity["StartTime"].timestamp()
            succeeded = activity["StatusCode"] == "Successful" and activity["Description"].startswith("Launching")
            if at < since or succeeded:
                return list(refusals.values())
            if activity["StatusCode"] in ("Failed", "Cancelled"):
                refusal = explain(at, activity.get("StatusMessage") or activity["Description"])
                refusals.setdefault(refusal.reason, refusal)
    return list(refusals.values())


# What the message of a failed activity contains: what it means, and the fix. The first that matches counts.
REFUSALS = (
    (
        r"VcpuLimitExceeded|vCPU limit|MaxSpotInstanceCountExceeded|Max spot instance count|InstanceLimitExceeded",
        "the account's vCPU quota for this kind of machine is used up",
        "`make preflight` names the quota and how to raise it",
    ),
    (
        r"ServiceLinkedRoleCreationNotPermitted|AWSServiceRoleForEC2Spot|service-linked role",
        "the account has no service-linked role for spot machines",
        "aws iam create-service-linked-role --aws-service-name spot.amazonaws.com",
    ),
    (
        r"Insufficient(Instance|Host)Capacity|UnfulfillableCapacity|sufficient \S+ capacity|no spot capacity",
        "AWS has no such machine free right now",
        "the group keeps asking; more types or zones in cdk.json help, or on-demand machines",
    ),
    (
        r"SpotMaxPriceTooLow|bid price",
        "the group's limit on the spot price is below the market's price",
        "`make deploy` again: it sets no limit",
    ),
    (
        r"InvalidAMI|\bAMI\b|image id .* does not exist",
        "the machine image of the launch template cannot be used",
        "`make deploy` again: it takes the newest image",
    ),
    (r"Unsupported|not supported", "a type is not offered in that zone", "other instance_types or zones in cdk.json"),
)


def explain(at: float, message: str) -> Refusal:
    """AWS's words as a sentence with its fix; other words as they are."""
    words = " ".join(message.split())
    for pattern, reason, fix in REFUSALS:
        if re.search(pattern, words, re.IGNORECASE):
            return Refusal(at, f"{reason} ({words})", fix)
    return Refusal(at, words)


def _policy(autoscaling: Any, name: str) -> dict[str, Any]:
    """The group's mixed instances policy, in the form that an update takes."""
    (found,) = autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=[name])["AutoScalingGroups"]
    policy: dict[str, Any] = found["MixedInstancesPolicy"]
    policy["LaunchTemplate"]["LaunchTemplateSpecification"].pop("LaunchTemplateName", None)  # id or name, not both
    return policy


def _distribution(policy: dict[str, Any], market: str) -> dict[str, Any]:
    share = 100 if market == ON_DEMAND else 0
    known: dict[str, Any] = policy.get("InstancesDistribution", {})
    return known | {"OnDemandBaseCapacity": 0, "OnDemandPercentageAboveBaseCapacity": share}


def _machine(instance: dict[str, Any]) -> FleetMachine:
    tags = {tag["Key"]: tag["Value"] for tag in instance.get("Tags", [])}
    state = instance["State"]["Name"]
    return FleetMachine(
        id=instance["InstanceId"],
        type=instance["InstanceType"],
        zone=instance.get("Placement", {}).get("AvailabilityZone", ""),
        market=SPOT if instance.get("InstanceLifecycle") == "spot" else ON_DEMAND,
        state=state,
        launched=instance["LaunchTime"].timestamp(),
        ended=0.0 if state in BILLING_STATES else _ended(instance.get("StateTransitionReason", "")),
        run_id=tags.get(Tag.RUN, ""),
        deadline=_seconds(tags.get(Tag.DEADLINE, "")),
        group=tags.get(GROUP_TAG, ""),
    )


def _ended(reason: str) -> float:
    """From `User initiated (2026-01-31 12:00:00 GMT)`; 0 where EC2 names no time."""
    found = re.search(r"\((\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (?:GMT|UTC)\)", reason)
    return datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC).timestamp() if found else 0.0


def _seconds(tag: str) -> float:
    return float(tag) if re.fullmatch(r"\d{1,12}(\.\d+)?", tag) else 0.0


def _pages(call: Any, **arguments: Any) -> Iterator[dict[str, Any]]:
    while True:
        page = call(**arguments)
        yield page
        if not (token := page.get("NextToken")):
            return
        arguments["NextToken"] = token
