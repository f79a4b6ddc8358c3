"""The installation's machines and their Auto Scaling groups: plain functions on boto3 clients.

The guard and the operator's commands decide when to call them. Prices and a run's files are elsewhere.
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
GROUP_TAG = "aws:autoscaling:groupName"  # AWS puts it on each machine that a group launches


@dataclass(frozen=True, kw_only=True)
class FleetMachine:
    """One EC2 instance of the installation. Times are Unix seconds."""

    id: str
    type: str
    zone: str
    market: str
    state: str  # EC2's word: pending, running, shutting-down, terminated, stopping, stopped
    launched: float
    ended: float = 0.0  # when it began to shut down, which ends its bill; 0: it still bills, or EC2 does not tell
    end: str = ""  # the code of EC2's reason, such as Client.InstanceInitiatedShutdown; "" while it bills
    run_id: str = ""  # from its tag; "" without one
    deadline: float = 0.0  # from its tag; 0 without one
    group: str = ""  # the Auto Scaling group that launched it

    @property
    def is_billing(self) -> bool:
        return self.state in BILLING_STATES


@dataclass(frozen=True, kw_only=True)
class Group:
    """The present state of an Auto Scaling group. Its tags name its run and deadline; its machines inherit them.

    A run may have machines from several groups, each with a market of its own. They have the same tags.
    """

    name: str
    desired: int
    maximum: int
    instance_ids: tuple[str, ...] = ()  # of its machines, also of those that are shutting down
    run_id: str = ""
    deadline: float = 0.0
    market: str = SPOT
    types: tuple[str, ...] = ()
    suspended: bool = False  # AWS launches nothing in it, or somebody told it so


@dataclass(frozen=True)
class Refusal:
    """Why AWS gave a group no machine."""

    at: float
    reason: str  # a sentence
    fix: str = ""  # what to do; "" if there are only AWS's own words

    def __str__(self) -> str:
        return f"{self.reason}: {self.fix}" if self.fix else self.reason


def machines(ec2: Any, installation_name: str, run_id: str = "") -> list[FleetMachine]:
    """The installation's machines, or one run's, oldest first. EC2 shows a terminated one for about an hour."""
    filters = [{"Name": f"tag:{Tag.INSTALLATION}", "Values": [installation_name]}]
    if run_id:
        filters.append({"Name": f"tag:{Tag.RUN}", "Values": [run_id]})
    pages = _pages(ec2.describe_instances, Filters=filters)
    found = [
        _machine(instance) for page in pages for reservation in page["Reservations"]
        for instance in reservation["Instances"]
    ]  # fmt: skip
    return sorted(found, key=lambda machine: (machine.launched, machine.id))


def read_groups(autoscaling: Any, names: Sequence[str]) -> list[Group]:
    """Those of the groups that exist, in the order of the names. An older installation has fewer, or none."""
    answer = autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=[*names])
    found = {group.name: group for group in map(_group, answer["AutoScalingGroups"])}
    return [found[name] for name in names if name in found]


def wanted_group(groups: Sequence[Group], run_id: str) -> Group | None:
    """The group that is asked for machines for the run; else one that has its tags; else None."""
    mine = [group for group in groups if group.run_id == run_id]
    return max(mine, key=lambda group: group.desired > 0, default=None)


def assign(autoscaling: Any, names: Sequence[str], run_id: str, deadline: float) -> None:
    """Tags the groups with the run and its deadline; so are the machines that they launch from now on."""
    tags = {Tag.RUN: run_id, Tag.DEADLINE: str(int(deadline))}
    autoscaling.create_or_update_tags(
        Tags=[
            {"ResourceId": name, "ResourceType": "auto-scaling-group", "PropagateAtLaunch": True, "Key": k, "Value": v}
            for name in names
            for k, v in tags.items()
        ]
    )


def scale(autoscaling: Any, name: str, nodes: int) -> None:
    autoscaling.set_desired_capacity(AutoScalingGroupName=name, DesiredCapacity=nodes, HonorCooldown=False)


def scale_to_zero(autoscaling: Any, name: str) -> None:
    """Sets a group to 0. If AWS refuses, somebody has raised its minimum by hand, so the minimum becomes 0 as well."""
    scale_down(autoscaling, name, 0)


def scale_down(autoscaling: Any, name: str, nodes: int) -> None:
    """Sets a group to fewer machines.

    AWS may ask who updates a group whether he may use its launch template, and says so. It does not ask who only sets
    the size: https://docs.aws.amazon.com/autoscaling/ec2/userguide/ec2-auto-scaling-launch-template-permissions.html
    So an update is only the last resort.
    """
    try:
        scale(autoscaling, name, nodes)
    except autoscaling.exceptions.ClientError as error:
        if error.response["Error"].get("Code") != "ValidationError":
            raise
        autoscaling.update_auto_scaling_group(AutoScalingGroupName=name, MinSize=0, DesiredCapacity=nodes)


def cap_group(autoscaling: Any, name: str, nodes: int) -> None:
    """Sets the maximum of a group."""
    autoscaling.update_auto_scaling_group(AutoScalingGroupName=name, MaxSize=nodes)


def why_no_machine(autoscaling: Any, group: Group, since: float = 0.0) -> list[Refusal]:
    """Why launches have failed since `since` and since the last success: newest first, each reason once.

    Before them comes that the group is suspended: then AWS tries nothing any more, and tells nothing new.
    """
    refusals: dict[str, Refusal] = {}
    if group.suspended:
        resume = f"aws autoscaling resume-processes --auto-scaling-group-name {group.name}"
        reason = f"launches of {group.name} are suspended, as AWS does after 24 hours without any machine"
        refusals[reason] = Refusal(since, reason, f"`{resume}`, or `make stop` and `make launch` again")
    for page in _pages(autoscaling.describe_scaling_activities, AutoScalingGroupName=group.name):
        for activity in page["Activities"]:  # AWS gives the newest first
            at = activity["StartTime"].timestamp()
            succeeded = activity["StatusCode"] == "Successful" and activity["Description"].startswith("Launching")
            if at < since or succeeded:
                return list(refusals.values())
            if activity["StatusCode"] in ("Failed", "Cancelled"):
                refusal = explain(at, activity.get("StatusMessage") or activity["Description"])
                refusals.setdefault(refusal.reason, refusal)
    return list(refusals.values())


# Pattern of a failed activity's message, its meaning, the fix. The first pattern that matches counts.
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
        r"due to your request configuration",  # AWS says so of both
        "AWS has no such machine free right now, or never has these types in these zones",
        "the group keeps asking; if it stays so, other types or zones in cdk.json, or on-demand machines",
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
    (
        r"Client error on launch|InvalidKMSKey",
        "the disk's key may not be used by Auto Scaling: the account's default key for disks is one of its own",
        "`make preflight` has the command that grants it",
    ),
    (r"Unsupported|not supported", "a type is not offered in that zone", "other instance_types or zones in cdk.json"),
)


def explain(at: float, message: str) -> Refusal:
    """Turns a message that we know into a sentence with its fix, and keeps any other as it is."""
    words = " ".join(message.split())
    for pattern, reason, fix in REFUSALS:
        if re.search(pattern, words, re.IGNORECASE):
            return Refusal(at, f"{reason} ({words})", fix)
    return Refusal(at, words)


def _group(found: dict[str, Any]) -> Group:
    tags = {tag["Key"]: tag["Value"] for tag in found.get("Tags", [])}
    policy = found.get("MixedInstancesPolicy", {})
    on_demand = policy.get("InstancesDistribution", {}).get("OnDemandPercentageAboveBaseCapacity", 100)
    return Group(
        name=found["AutoScalingGroupName"],
        desired=found["DesiredCapacity"],
        maximum=found["MaxSize"],
        instance_ids=tuple(instance["InstanceId"] for instance in found.get("Instances", [])),
        run_id=tags.get(Tag.RUN, ""),
        deadline=_seconds(tags.get(Tag.DEADLINE, "")),
        market=ON_DEMAND if int(on_demand) == 100 else SPOT,
        types=tuple(o["InstanceType"] for o in policy.get("LaunchTemplate", {}).get("Overrides", [])),
        suspended=any(one["ProcessName"] == "Launch" for one in found.get("SuspendedProcesses", [])),
    )


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
        end="" if state in BILLING_STATES else str(instance.get("StateReason", {}).get("Code", "")),
        run_id=tags.get(Tag.RUN, ""),
        deadline=_seconds(tags.get(Tag.DEADLINE, "")),
        group=tags.get(GROUP_TAG, ""),
    )


def _ended(reason: str) -> float:
    """The end of the second in `User initiated (2026-01-31 12:00:00 GMT)`; 0 if EC2 names none."""
    found = re.search(r"\((\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (?:GMT|UTC)\)", reason)
    return datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC).timestamp() + 1 if found else 0.0


def _seconds(tag: str) -> float:
    return float(tag) if re.fullmatch(r"\d{1,12}(\.\d+)?", tag) else 0.0


def _pages(call: Any, **arguments: Any) -> Iterator[dict[str, Any]]:
    while True:
        page = call(**arguments)
        yield page
        if not (token := page.get("NextToken")):
            return
        arguments["NextToken"] = token
