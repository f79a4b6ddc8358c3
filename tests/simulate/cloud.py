"""AWS in memory: machines, groups, objects and schedules, and what AWS does by itself between two calls.
Time, capacity, prices and faults are those of the simulation's `Clock` and `Weather`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import Any

from botocore.exceptions import ClientError

from tests.simulate.clock import Clock

FORGET_SECONDS = 3600  # EC2 shows a terminated machine for about an hour
ON_DEMAND_USD = {"g6.xlarge": 0.8048, "g5.xlarge": 1.006, "g6e.xlarge": 1.861}
ZONES = ("a", "b", "c")


@dataclass
class Weather:
    """What a seed has in store. Windows are (from, to)."""

    droughts: dict[tuple[str, str], list[tuple[float, float]]] = field(default_factory=dict)  # by pool
    on_demand_droughts: list[tuple[float, float]] = field(default_factory=list)
    store_outages: list[tuple[float, float]] = field(default_factory=list)
    guard_outages: list[tuple[float, float]] = field(default_factory=list)
    blackouts: list[tuple[float, float]] = field(default_factory=list)  # no capacity in any pool and market
    silences: list[tuple[float, float]] = field(default_factory=list)  # every API refuses every call
    throttled: float = 0.0  # share of calls that EC2 and Auto Scaling refuse
    overlooked: float = 0.0  # share of answers in which EC2 leaves a machine out
    share: dict[tuple[str, str], list[float]] = field(default_factory=dict)  # of the on-demand price, by hour
    reclaims_per_hour: float = 0.0
    unannounced: float = 0.0  # share of reclaims without the notice
    is_rebalancing: bool = False  # the replacement of a reclaimed machine comes before it goes
    is_sticky: bool = False  # a group that is set to 0 keeps its machines: protected, or its processes suspended

    @property
    def no_store(self) -> list[tuple[float, float]]:
        return [*self.store_outages, *self.silences]


def within(windows: Sequence[tuple[float, float]], now: float) -> bool:
    return any(start <= now < end for start, end in windows)


@dataclass(eq=False)
class Instance:
    """`shape` is what DescribeInstances says of it."""

    id: str
    type: str
    zone: str
    market: str
    tags: dict[str, str]
    launched: float
    shape: dict[str, Any]
    ended: float = 0.0
    prices: list[tuple[float, float]] = field(default_factory=list)  # (from, dollars per hour)

    @property
    def is_billing(self) -> bool:
        return not self.ended

    def usd(self, now: float) -> float:
        """AWS bills a minute at least."""
        until = max(self.ended or now, self.launched + 60)
        ends = [start for start, _ in self.prices[1:]] + [until]
        return sum(
            max(0.0, min(end, until) - start) / 3600 * price
            for (start, price), end in zip(self.prices, ends, strict=True)
        )


@dataclass(eq=False)
class GroupState:
    name: str
    shape: dict[str, Any]  # what DescribeAutoScalingGroups says of it
    activities: list[dict[str, Any]] = field(default_factory=list)
    members: list[Instance] = field(default_factory=list)
    is_busy: bool = False


class Cloud:
    """The account; `on_launch` is called with every machine that a group gets."""

    def __init__(self, clock: Clock, random: Random, weather: Weather, groups: Sequence[str], on_demand: str):
        self.clock, self.random, self.weather = clock, random, weather
        self.on_launch: Callable[[Instance], None] = lambda instance: None
        self.on_terminate: Callable[[Instance], None] = lambda instance: None
        self.instances: list[Instance] = []
        self.objects: dict[str, tuple[bytes, float]] = {}
        self.live: dict[str, Callable[[], tuple[bytes, float] | None]] = {}  # objects that someone keeps writing
        self.schedules: dict[str, str] = {}  # name: the target's input
        self.mail: list[str] = []
        self.refuses_schedules = False
        self.groups = {name: self._group(name, 100 * (name == on_demand)) for name in groups}

    def _group(self, name: str, share: int) -> GroupState:
        tag = {"Key": "resnet-spot", "Value": "resnet-spot", "PropagateAtLaunch": True}
        policy = {
            "LaunchTemplate": {"LaunchTemplateSpecification": {"LaunchTemplateId": "lt"}, "Overrides": []},
            "InstancesDistribution": {"OnDemandPercentageAboveBaseCapacity": share},
        }
        shape = {"AutoScalingGroupName": name, "MinSize": 0, "MaxSize": 1, "DesiredCapacity": 0, "Tags": [tag],
                 "MixedInstancesPolicy": policy, "Instances": []}  # fmt: skip
        return GroupState(name, shape)

    @property
    def desired(self) -> int:
        return sum(int(group.shape["DesiredCapacity"]) for group in self.groups.values())

    # What AWS does by itself.

    def reconcile(self, group: GroupState, seconds: float = 0.0) -> None:
        """Soon the group will look at what it has and what it wants."""
        if not group.is_busy:
            group.is_busy = True
            self.clock.after(seconds or self.random.uniform(3, 20), lambda: self._look(group))

    def _look(self, group: GroupState) -> None:
        group.is_busy = False
        members = [instance for instance in group.members if instance.is_billing]
        group.members = members
        group.shape["Instances"] = [{"InstanceId": instance.id} for instance in members]
        wanted = group.shape["DesiredCapacity"]
        for instance in [] if self.weather.is_sticky else members[wanted:]:
            self.terminate(instance)
        if wanted > len(members):
            self.reconcile(group, 20.0 if self._launch(group) else self.random.uniform(60, 120))

    def _launch(self, group: GroupState) -> bool:
        policy, now = group.shape["MixedInstancesPolicy"], self.clock.now
        is_spot = policy["InstancesDistribution"]["OnDemandPercentageAboveBaseCapacity"] == 0
        pools = [
            (override["InstanceType"], zone) for override in policy["LaunchTemplate"]["Overrides"] for zone in ZONES
        ]
        if is_spot:
            free = [pool for pool in pools if not within(self.weather.droughts.get(pool, []), now)]
        else:
            free = [] if within(self.weather.on_demand_droughts, now) else pools
        if not free or within(self.weather.blackouts, now):
            message = "Could not launch Spot Instances. UnfulfillableCapacity - Unable to fulfill capacity."
            self._activity(group, "Failed", "Launching a new EC2 instance.", message)
            return False
        type, zone = min(free, key=lambda pool: self.price(*pool)) if is_spot else free[0]
        self._start(group, type, zone, "spot" if is_spot else "on-demand")
        return True

    def _start(self, group: GroupState, type: str, zone: str, market: str) -> None:
        now, id = self.clock.now, f"i-{len(self.instances)}"
        tags = {tag["Key"]: tag["Value"] for tag in group.shape["Tags"] if tag["PropagateAtLaunch"]}
        tags["aws:autoscaling:groupName"] = group.name
        shape = {
            "InstanceId": id, "InstanceType": type, "Placement": {"AvailabilityZone": zone},
            "State": {"Name": "pending"}, "LaunchTime": datetime.fromtimestamp(now, UTC), "StateTransitionReason": "",
            "Tags": [{"Key": key, "Value": value} for key, value in tags.items()],
        }  # fmt: skip
        if market == "spot":
            shape["InstanceLifecycle"] = "spot"
        instance = Instance(id, type, zone, market, tags, now, shape)
        instance.prices.append((now, self.price(type, zone) if market == "spot" else ON_DEMAND_USD[type]))
        self.instances.append(instance)
        group.members.append(instance)
        group.shape["Instances"] = [{"InstanceId": member.id} for member in group.members if member.is_billing]
        self._activity(group, "Successful", f"Launching a new EC2 instance: {id}", "")
        if market == "spot":
            self.clock.after(3600 - now % 3600, lambda: self._reprice(instance))
        self.on_launch(instance)

    def _reprice(self, instance: Instance) -> None:
        if instance.is_billing:
            price = self.price(instance.type, instance.zone)
            if price != instance.prices[-1][1]:
                instance.prices.append((self.clock.now, price))
            self.clock.after(3600, lambda: self._reprice(instance))

    def price(self, type: str, zone: str, hour: int | None = None) -> float:
        """The spot price now, or in another hour."""
        shares = self.weather.share.get((type, zone), [0.4])
        return ON_DEMAND_USD[type] * shares[int(self.clock.now // 3600 if hour is None else hour) % len(shares)]

    def give_up(self, instance: Instance) -> None:
        """Its group stops counting on it."""
        group = self.groups[instance.tags["aws:autoscaling:groupName"]]
        if self.weather.is_rebalancing and instance in group.members:
            group.members.remove(instance)
            self.reconcile(group)

    def running(self, instance: Instance) -> None:
        instance.shape["State"] = {"Name": "running"}

    def terminate(self, instance: Instance, reason: str = "Client.UserInitiatedShutdown") -> None:
        """It stops billing; its group notices. `reason` is EC2's code for the end."""
        if instance.is_billing:
            instance.ended = self.clock.now
            instance.shape |= {"State": {"Name": "shutting-down"}, "StateReason": {"Code": reason}}
            instance.shape["StateTransitionReason"] = (
                f"User initiated ({datetime.fromtimestamp(self.clock.now, UTC):%Y-%m-%d %H:%M:%S} GMT)"
            )
            self.clock.after(60, lambda: instance.shape.update(State={"Name": "terminated"}))
            self.on_terminate(instance)
            self.reconcile(self.groups[instance.tags["aws:autoscaling:groupName"]])

    def _activity(self, group: GroupState, status: str, description: str, message: str) -> None:
        group.activities.insert(0, {"StartTime": datetime.fromtimestamp(self.clock.now, UTC), "StatusCode": status,
                                    "Description": description, "StatusMessage": message})  # fmt: skip

    def read(self, key: str) -> tuple[bytes, float] | None:
        return self.live[key]() if key in self.live else self.objects.get(key)

    def write(self, key: str, body: bytes) -> None:
        self.objects[key] = (body, self.clock.now)

    @property
    def is_store_up(self) -> bool:
        return not within(self.weather.no_store, self.clock.now)

    @property
    def is_silent(self) -> bool:
        return within(self.weather.silences, self.clock.now)

    def throttle(self, operation: str) -> None:
        if self.is_silent or self.random.random() < self.weather.throttled:
            raise ClientError({"Error": {"Code": "RequestLimitExceeded", "Message": "simulated"}}, operation)
