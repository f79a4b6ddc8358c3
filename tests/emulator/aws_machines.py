"""EC2, Auto Scaling and logs in the emulator: what moto 5.2.5 lacks of them. Each function that
patches says which gap it closes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from copy import deepcopy
from datetime import UTC, datetime
from typing import Any, TypeAlias

from moto.autoscaling import models as asg
from moto.autoscaling.exceptions import ValidationError
from moto.autoscaling.responses import AutoScalingResponse
from moto.core.responses import ActionResult
from moto.ec2.models.instances import Instance
from moto.iam.models import SERVICE_NAME_CONVERSION
from moto.logs import models as logs
from moto.logs.responses import LogsResponse
from moto.moto_api._internal import mock_random

from tests.emulator.aws_control import SETTINGS

Group: TypeAlias = asg.FakeAutoScalingGroup
LAUNCHING = threading.RLock()  # two requests at once would each launch the machine that a group lacks


def patch() -> dict[str, Callable[[], None]]:
    machines_follow_the_policy()
    activities_and_failures()
    updates_leave_the_rest_alone()
    SERVICE_NAME_CONVERSION["spot"] = "EC2Spot"  # moto makes AWSServiceRoleForspot
    logs_come_late_and_in_pages()
    return {}


def is_spot(group: Group) -> bool:
    distribution = (group.mixed_instances_policy or {}).get("InstancesDistribution", {})
    return int(distribution.get("OnDemandPercentageAboveBaseCapacity", 100)) == 0


def machines_follow_the_policy() -> None:
    """moto takes the launch template's type, and on-demand, whatever the mixed-instances policy says; it does not tag
    volumes and interfaces, makes a root volume beside the template's, and keeps interfaces for ever."""
    add_volume = Instance.add_block_device
    launch, own_type = Group.replace_autoscaling_group_instances, Group.instance_type.fget

    def instance_type(self: Group) -> str:
        overrides = (self.mixed_instances_policy or {}).get("LaunchTemplate", {}).get("Overrides") or [{}]
        return str(overrides[0].get("InstanceType") or own_type(self))

    def launched(self: Group, count_needed: int, propagated_tags: dict[str, str]) -> None:
        launch(self, count_needed, propagated_tags)
        for state in self.instance_states[-count_needed:]:
            state.instance.lifecycle = "spot" if is_spot(self) else None
            for interface in state.instance.nics.values():
                interface.delete_on_termination = True
                interface.add_tags(tags_of(self, "network-interface"))
            for _, device in state.instance.get_block_device_mapping:
                self.ec2_backend.volumes[device.volume_id].add_tags(tags_of(self, "volume"))

    def tags_of(group: Group, resource_type: str) -> dict[str, str]:
        template = group.ec2_launch_template
        data = template.get_version(group.launch_template_version).data if template else {}
        found = [s["Tags"] for s in data.get("TagSpecifications", []) if s["ResourceType"] == resource_type]
        return {tag["Key"]: tag["Value"] for tags in found for tag in tags}

    def replaced(self: Instance, size: int, device_path: str, *rest: Any, **more: Any) -> None:
        if default := self.block_device_mapping.get(device_path):
            self.ec2_backend.detach_volume(default.volume_id, self.id, device_path)
            self.ec2_backend.delete_volume(default.volume_id)
        add_volume(self, size, device_path, *rest, **more)

    Instance.add_block_device = replaced
    Group.instance_type = property(instance_type)
    Group.replace_autoscaling_group_instances = launched


def activity(group: Group, description: str, failure: str = "") -> dict[str, Any]:
    now = datetime.now(UTC)
    return {
        "ActivityId": str(mock_random.uuid4()), "AutoScalingGroupName": group.name, "AutoScalingGroupARN": group.arn,
        "Description": description, "Cause": f"At {now:%Y-%m-%dT%H:%M:%SZ} the group's desired capacity was met.",
        "StartTime": now, "EndTime": now, "Progress": 100, "Details": "{}",
        "StatusCode": "Failed" if failure else "Successful", "StatusMessage": failure or None,
    }  # fmt: skip


def activities(group: Group) -> list[dict[str, Any]]:
    """The newest first."""
    return group.__dict__.setdefault("activities", [])


def ids_of(group: Group) -> set[str]:
    return {state.instance.id for state in group.instance_states}


def tell_of_the_missing(group: Group, before: set[str]) -> None:
    for missing in before - ids_of(group):
        activities(group).insert(0, activity(group, f"Terminating EC2 instance: {missing}"))


def activities_and_failures() -> None:
    """moto tells no scaling activity, and a group of it always gets its machines, also a suspended one."""
    launch, set_desired = Group.replace_autoscaling_group_instances, Group.set_desired_capacity
    backend = asg.AutoScalingBackend
    notify, describe = backend.notify_terminate_instances, backend.describe_auto_scaling_groups

    def launched(self: Group, count_needed: int, propagated_tags: dict[str, str]) -> None:
        if any(one["ProcessName"] == "Launch" for one in self.suspended_processes):
            return
        if failure := SETTINGS.launch_failures.get(self.name):
            told = activities(self)
            if not told or told[0]["StatusMessage"] != failure:
                told.insert(0, activity(self, "Launching a new EC2 instance.  Status Reason: " + failure, failure))
            return
        launch(self, count_needed, propagated_tags)
        for state in self.instance_states[-count_needed:]:
            activities(self).insert(0, activity(self, f"Launching a new EC2 instance: {state.instance.id}"))

    def changed(self: Group, new_capacity: int | None) -> None:
        low, high = int(self.min_size or 0), int(self.max_size or 0)
        if new_capacity is not None and not low <= int(new_capacity) <= high:
            raise ValidationError(
                f"Desired capacity:{new_capacity} must be between the specified min size:{low} and max size:{high}"
            )
        with LAUNCHING:
            before = ids_of(self)
            set_desired(self, new_capacity)
            tell_of_the_missing(self, before)

    def notified(self: asg.AutoScalingBackend, instance_ids: list[str]) -> None:
        with LAUNCHING:
            before = {group.name: ids_of(group) for group in self.autoscaling_groups.values()}
            notify(self, instance_ids)
        for group in self.autoscaling_groups.values():
            tell_of_the_missing(group, before[group.name])

    def described(self: asg.AutoScalingBackend, *args: Any, **kwargs: Any) -> list[Group]:
        for group in self.autoscaling_groups.values():  # one that failed tries again
            with LAUNCHING:
                if missing := max(0, int(group.desired_capacity or 0) - len(group.instance_states)):
                    group.replace_autoscaling_group_instances(missing, group.get_propagated_tags())
        return describe(self, *args, **kwargs)

    def scaling_activities(self: AutoScalingResponse) -> ActionResult:
        name = self._get_param("AutoScalingGroupName")
        groups = self.autoscaling_backend.describe_auto_scaling_groups([name] if name else [])
        if name and not groups:
            raise ValidationError(f"AutoScalingGroup name not found - AutoScalingGroup '{name}' not found")
        newest_first = [entry for group in groups for entry in activities(group)]
        return ActionResult({"Activities": newest_first[: self._get_int_param("MaxRecords", 100)]})

    Group.replace_autoscaling_group_instances = launched
    Group.set_desired_capacity = changed
    backend.notify_terminate_instances = notified
    backend.describe_auto_scaling_groups = described
    AutoScalingResponse.describe_scaling_activities = scaling_activities


def updates_leave_the_rest_alone() -> None:
    """moto forgets the mixed-instances policy with each update that does not repeat it, and CloudFormation's update
    of a group replaces it, machines and tags included."""
    update = Group.update

    def merged(group: Group, change: dict[str, Any]) -> dict[str, Any]:
        policy = deepcopy(group.mixed_instances_policy or {})
        policy.get("LaunchTemplate", {}).get("LaunchTemplateSpecification", {}).pop("LaunchTemplateName", None)
        for part in ("LaunchTemplate", "InstancesDistribution"):
            policy[part] = policy.get(part, {}) | change.get(part, {})
        return policy

    def updated(self: Group, *args: Any, mixed_instances_policy: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if self.mixed_instances_policy:
            mixed_instances_policy = merged(self, mixed_instances_policy or {})
        update(self, *args, mixed_instances_policy=mixed_instances_policy, **kwargs)

    def in_place(
        cls: type[Group], original_resource: Group, new_resource_name: str, cloudformation_json: dict[str, Any],
        account_id: str, region_name: str,
    ) -> Group:  # fmt: skip
        given = cloudformation_json["Properties"]
        desired = given.get("DesiredCapacity")
        original_resource.update(
            availability_zones=[], desired_capacity=None if desired is None else int(desired),
            max_size=int(given["MaxSize"]), min_size=int(given["MinSize"]), launch_config_name="", launch_template={},
            vpc_zone_identifier=",".join(given.get("VPCZoneIdentifier", [])), health_check_period=300,
            health_check_type="EC2", mixed_instances_policy=given.get("MixedInstancesPolicy"),
        )  # fmt: skip
        keys = {tag["Key"] for tag in given.get("Tags", [])}
        original_resource.tags = [t for t in original_resource.tags if t["Key"] not in keys] + given.get("Tags", [])
        return original_resource

    Group.update = updated
    Group.update_from_cloudformation_json = classmethod(in_place)


def logs_come_late_and_in_pages() -> None:
    """With moto an event shows at once, all in one answer, stream by stream, and a prefix of streams is ignored."""
    of_stream, of_group = logs.LogStream.filter_log_events, logs.LogGroup.filter_log_events
    of_service, prefix = LogsResponse.filter_log_events, ContextVar("prefix", default="")

    def arrived(self: logs.LogStream, *args: Any) -> list[dict[str, Any]]:
        now = time.time() * 1000 - SETTINGS.log_delay_seconds * 1000
        return [event for event in of_stream(self, *args) if event["ingestionTime"] <= now]

    def paged(
        self: logs.LogGroup, name: str, streams: list[str], start: int, end: int, limit: int | None, *rest: Any
    ) -> Any:
        streams = streams or [stream for stream in self.streams if stream.startswith(prefix.get())] or [""]
        limit = min(limit or 10000, SETTINGS.log_page_events or 10000)
        return of_group(self, name, streams, start, end, limit, *rest[:-1], True)

    def with_prefix(self: LogsResponse) -> str:
        asked = prefix.set(self._get_param("logStreamNamePrefix") or "")
        try:
            return of_service(self)
        finally:
            prefix.reset(asked)

    LogsResponse.filter_log_events = with_prefix
    logs.LogStream.filter_log_events = arrived
    logs.LogGroup.filter_log_events = paged
