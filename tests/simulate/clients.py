"""Clients with boto3's methods, as far as the guard, `launch` and a machine use them, over the simulated account."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from botocore.exceptions import ClientError

from tests.simulate.cloud import FORGET_SECONDS, Cloud


def error(code: str, operation: str, kind: type[ClientError] = ClientError) -> ClientError:
    return kind({"Error": {"Code": code, "Message": "simulated"}}, operation)


class NoSuchKey(ClientError):  # noqa: N818  # boto3's name
    pass


class NotFound(ClientError):  # noqa: N818
    pass


class Ec2:
    def __init__(self, cloud: Cloud):
        self.cloud = cloud

    def describe_instances(self, Filters: list[dict[str, Any]]) -> dict[str, Any]:  # noqa: N803
        self.cloud.throttle("DescribeInstances")
        now = self.cloud.clock.now
        found = [i for i in self.cloud.instances if not i.ended or now - i.ended < FORGET_SECONDS]
        for filter in Filters:
            key = filter["Name"].removeprefix("tag:")
            found = [instance for instance in found if instance.tags.get(key) in filter["Values"]]
        if found and self.cloud.random.random() < self.cloud.weather.overlooked:
            found.remove(self.cloud.random.choice(found))
        return {"Reservations": [{"Instances": [instance.shape for instance in found]}]}

    def terminate_instances(self, InstanceIds: list[str]) -> None:  # noqa: N803
        self.cloud.throttle("TerminateInstances")
        for instance in self.cloud.instances:
            if instance.id in InstanceIds:
                self.cloud.terminate(instance)

    def describe_spot_price_history(
        self, InstanceTypes: list[str], AvailabilityZone: str, StartTime: datetime, **_: Any  # noqa: N803
    ) -> dict[str, Any]:  # fmt: skip
        """The changes since the start, and the last one before it. Prices change on the hour."""
        self.cloud.throttle("DescribeSpotPriceHistory")
        hours = range(int(StartTime.timestamp() // 3600), int(self.cloud.clock.now // 3600) + 1)
        prices = {hour: self.cloud.price(InstanceTypes[0], AvailabilityZone, hour) for hour in reversed(hours)}
        return {"SpotPriceHistory": [{"Timestamp": datetime.fromtimestamp(hour * 3600, UTC), "SpotPrice": repr(usd)}
                                     for hour, usd in prices.items()]}  # fmt: skip


class AutoScaling:
    exceptions = SimpleNamespace(ClientError=ClientError)

    def __init__(self, cloud: Cloud, *, is_operator: bool):
        self.cloud, self.is_operator = cloud, is_operator

    def describe_auto_scaling_groups(self, AutoScalingGroupNames: list[str]) -> dict[str, Any]:  # noqa: N803
        self.cloud.throttle("DescribeAutoScalingGroups")
        return {"AutoScalingGroups": [self.cloud.groups[name].shape for name in AutoScalingGroupNames]}

    def describe_scaling_activities(self, AutoScalingGroupName: str) -> dict[str, Any]:  # noqa: N803
        self.cloud.throttle("DescribeScalingActivities")
        return {"Activities": self.cloud.groups[AutoScalingGroupName].activities}

    def create_or_update_tags(self, Tags: list[dict[str, Any]]) -> None:  # noqa: N803
        self.cloud.throttle("CreateOrUpdateTags")
        for tag in Tags:
            shape = self.cloud.groups[tag["ResourceId"]].shape
            shape["Tags"] = [old for old in shape["Tags"] if old["Key"] != tag["Key"]] + [tag]

    def set_desired_capacity(
        self, AutoScalingGroupName: str, DesiredCapacity: int, HonorCooldown: bool  # noqa: N803
    ) -> None:  # fmt: skip
        self.cloud.throttle("SetDesiredCapacity")
        self._desire(AutoScalingGroupName, DesiredCapacity)

    def update_auto_scaling_group(self, AutoScalingGroupName: str, **values: Any) -> None:  # noqa: N803
        self.cloud.throttle("UpdateAutoScalingGroup")
        if "MixedInstancesPolicy" in values and not self.is_operator:  # the guard may not use the launch template
            raise error("AccessDenied", "UpdateAutoScalingGroup")
        shape = self.cloud.groups[AutoScalingGroupName].shape
        shape["MixedInstancesPolicy"] = shape["MixedInstancesPolicy"] | values.pop("MixedInstancesPolicy", {})
        shape["MaxSize"] = values.get("MaxSize", shape["MaxSize"])
        if "DesiredCapacity" in values:
            self._desire(AutoScalingGroupName, values["DesiredCapacity"])

    def terminate_instance_in_auto_scaling_group(
        self, InstanceId: str, ShouldDecrementDesiredCapacity: bool  # noqa: N803
    ) -> None:  # fmt: skip
        self.cloud.throttle("TerminateInstanceInAutoScalingGroup")
        group = next(g for g in self.cloud.groups.values() if InstanceId in {one.id for one in g.members})
        group.shape["DesiredCapacity"] -= ShouldDecrementDesiredCapacity
        self.cloud.terminate(next(one for one in group.members if one.id == InstanceId))

    def _desire(self, name: str, desired: int) -> None:
        group = self.cloud.groups[name]
        if desired > group.shape["MaxSize"]:
            raise error("ValidationError", "SetDesiredCapacity")
        group.shape["DesiredCapacity"] = desired
        self.cloud.reconcile(group)


class S3:
    exceptions = SimpleNamespace(NoSuchKey=NoSuchKey)

    def __init__(self, cloud: Cloud):
        self.cloud = cloud

    def get_object(self, Bucket: str, Key: str) -> dict[str, Any]:  # noqa: N803
        self._check("GetObject")
        if (found := self.cloud.read(Key)) is None:
            raise error("NoSuchKey", "GetObject", NoSuchKey)
        return {"Body": io.BytesIO(found[0]), "LastModified": datetime.fromtimestamp(found[1], UTC)}

    def list_objects_v2(self, Bucket: str, Prefix: str) -> dict[str, Any]:  # noqa: N803
        self._check("ListObjectsV2")
        keys = sorted(key for key in {*self.cloud.objects, *self.cloud.live} if key.startswith(Prefix))
        found = [(key, self.cloud.read(key)) for key in keys]
        return {"Contents": [{"Key": key, "LastModified": datetime.fromtimestamp(one[1], UTC)}
                             for key, one in found if one]}  # fmt: skip

    def put_object(self, Bucket: str, Key: str, Body: bytes, **condition: str) -> None:  # noqa: N803
        self._check("PutObject")
        if condition.get("IfNoneMatch") and Key in self.cloud.objects:
            raise error("PreconditionFailed", "PutObject")
        self.cloud.write(Key, Body)

    def delete_object(self, Bucket: str, Key: str) -> None:  # noqa: N803
        self._check("DeleteObject")
        self.cloud.objects.pop(Key, None)

    def _check(self, operation: str) -> None:
        if not self.cloud.is_store_up:
            raise error("SlowDown", operation)


class Scheduler:
    exceptions = SimpleNamespace(ResourceNotFoundException=NotFound)

    def __init__(self, cloud: Cloud):
        self.cloud = cloud

    def list_schedules(self, GroupName: str) -> dict[str, Any]:  # noqa: N803
        self.cloud.throttle("ListSchedules")
        return {"Schedules": [{"Name": name} for name in self.cloud.schedules]}

    def create_schedule(self, Name: str, ScheduleExpression: str, Target: dict[str, Any], **_: Any) -> None:  # noqa: N803
        self.cloud.throttle("CreateSchedule")
        at = datetime.strptime(ScheduleExpression, "at(%Y-%m-%dT%H:%M:%S)").replace(tzinfo=UTC).timestamp()
        self.cloud.schedules[Name] = ScheduleExpression
        late = self.cloud.random.uniform(0, 60)  # EventBridge Scheduler is precise to a minute
        self.cloud.clock.at(at + late, lambda: self._fire(Name, ScheduleExpression, json.loads(Target["Input"])))

    update_schedule = create_schedule

    def delete_schedule(self, GroupName: str, Name: str) -> None:  # noqa: N803
        self.cloud.throttle("DeleteSchedule")
        if self.cloud.schedules.pop(Name, None) is None:
            raise error("ResourceNotFoundException", "DeleteSchedule", NotFound)

    def _fire(self, name: str, expression: str, values: dict[str, Any]) -> None:
        if self.cloud.is_silent:  # EventBridge Scheduler tries a target that throttles it again, for a day
            self.cloud.clock.after(60, lambda: self._fire(name, expression, values))
        elif self.cloud.schedules.get(name) == expression and not self.cloud.refuses_schedules:
            del self.cloud.schedules[name]
            group = self.cloud.groups[values["AutoScalingGroupName"]]
            group.shape["DesiredCapacity"] = values["DesiredCapacity"]
            self.cloud.reconcile(group)


class Sns:
    def __init__(self, cloud: Cloud):
        self.cloud = cloud

    def publish(self, TopicArn: str, Subject: str, Message: str) -> None:  # noqa: N803
        self.cloud.throttle("Publish")
        self.cloud.mail.append(f"{Subject}: {Message}")


def clients(cloud: Cloud, *, is_operator: bool = False) -> Callable[[str], Any]:
    """By the name of the service, as `boto3.client`; always the same one. The operator may use launch templates."""
    made = {
        "ec2": Ec2(cloud), "autoscaling": AutoScaling(cloud, is_operator=is_operator), "s3": S3(cloud),
        "scheduler": Scheduler(cloud), "sns": Sns(cloud),
    }  # fmt: skip
    return made.__getitem__
