"""Placement groups and what an Auto Scaling group has of them, in the emulator: moto 5.2.5 has none. Shapes and errors
are those of botocore's models and of the EC2 user guide, "Placement groups"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from moto.autoscaling import models as asg
from moto.autoscaling.exceptions import ValidationError
from moto.autoscaling.responses import AutoScalingResponse
from moto.core.common_models import CloudFormationModel
from moto.core.responses import ActionResult, EmptyResult
from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models import ec2_backends
from moto.ec2.responses import EC2Response
from moto.moto_api._internal import mock_random

Group: TypeAlias = asg.FakeAutoScalingGroup


class PlacementGroup(CloudFormationModel):
    """CloudFormation makes up its name."""

    __module__ = "moto.emulator.models"

    def __init__(self, name: str, strategy: str, account: str, region: str, tags: dict[str, str]) -> None:
        self.name, self.strategy, self.tags = name, strategy, tags
        self.id = f"pg-{mock_random.get_random_hex(17)}"
        self.arn = f"arn:aws:ec2:{region}:{account}:placement-group/{name}"

    @property
    def physical_resource_id(self) -> str:
        return self.name

    @property
    def told(self) -> dict[str, Any]:
        return {
            "GroupName": self.name, "State": "available", "Strategy": self.strategy, "GroupId": self.id,
            "GroupArn": self.arn, "Tags": [{"Key": key, "Value": value} for key, value in self.tags.items()],
        }  # fmt: skip

    @staticmethod
    def cloudformation_name_type() -> str:
        return ""

    @staticmethod
    def cloudformation_type() -> str:
        return "AWS::EC2::PlacementGroup"

    @classmethod
    def create_from_cloudformation_json(
        cls, name: str, body: dict[str, Any], account: str, region: str, **kwargs: Any
    ) -> PlacementGroup:
        given = body.get("Properties", {})
        tags = {tag["Key"]: tag["Value"] for tag in given.get("Tags", [])}
        return create(account, region, name, given.get("Strategy", "cluster"), tags)

    @classmethod
    def delete_from_cloudformation_json(cls, name: str, body: Any, account: str, region: str) -> None:
        delete(account, region, name)


class PlacementError(EC2ClientError):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"InvalidPlacementGroup.{code}", message)


def known(account: str, region: str) -> dict[str, PlacementGroup]:
    """By name. They go with the account's other things at a reset."""
    return ec2_backends[account][region].__dict__.setdefault("placement_groups", {})


def create(account: str, region: str, name: str, strategy: str, tags: dict[str, str]) -> PlacementGroup:
    groups = known(account, region)
    if name in groups:
        raise PlacementError("Duplicate", f"The Placement Group '{name}' already exists.")
    groups[name] = PlacementGroup(name, strategy, account, region, tags)
    return groups[name]


def delete(account: str, region: str, name: str) -> None:
    if name not in known(account, region):
        raise PlacementError("Unknown", f"The Placement Group '{name}' is unknown.")
    instances = ec2_backends[account][region].all_instances()
    if any(one.placement.group_name == name and one.state != "terminated" for one in instances):
        raise PlacementError("InUse", f"The placement group {name} is in use and may not be deleted.")
    del known(account, region)[name]


def patch() -> dict[str, Callable[[], None]]:
    calls_of_ec2()
    updates_of_groups()
    return {}


def calls_of_ec2() -> None:
    def created(self: EC2Response) -> ActionResult:
        tags = {t["Key"]: t["Value"] for one in self._get_param("TagSpecifications", []) for t in one["Tags"]}
        name, strategy = self._get_param("GroupName"), self._get_param("Strategy")
        return ActionResult({"PlacementGroup": create(self.current_account, self.region, name, strategy, tags).told})

    def described(self: EC2Response) -> ActionResult:
        wanted = self._filters_from_querystring()

        def matches(group: PlacementGroup) -> bool:
            told = {f"tag:{key}": value for key, value in group.tags.items()} | {"group-name": group.name}
            return all(told.get(name) in values for name, values in wanted.items())

        groups = known(self.current_account, self.region).values()
        return ActionResult({"PlacementGroups": [group.told for group in groups if matches(group)]})

    def deleted(self: EC2Response) -> ActionResult:
        delete(self.current_account, self.region, self._get_param("GroupName"))
        return EmptyResult()

    EC2Response.create_placement_group = created
    EC2Response.describe_placement_groups = described
    EC2Response.delete_placement_group = deleted


def updates_of_groups() -> None:
    """An update sets a placement group, and "" takes it away. A cluster is in one zone. Machines start in it. A launch
    template that an override names must exist."""
    update, launch = AutoScalingResponse.update_auto_scaling_group, Group.replace_autoscaling_group_instances

    def updated(self: AutoScalingResponse) -> ActionResult:
        group = self.autoscaling_backend.autoscaling_groups.get(self._get_param("AutoScalingGroupName"))
        name = self._get_param("PlacementGroup")
        if group is not None:
            backend = ec2_backends[self.current_account][self.region]
            check_templates(backend, self._get_param("MixedInstancesPolicy") or {})
            placed = group.placement_group if name is None else name
            check_placement(backend, known(self.current_account, self.region), placed, self.zone_subnets(group))
            group.placement_group = placed or None
        return update(self)

    def zone_subnets(self: AutoScalingResponse, group: Group) -> list[str]:
        asked = self._get_param("VPCZoneIdentifier") or group.vpc_zone_identifier or ""
        return [id for id in asked.split(",") if id]

    def launched(self: Group, count_needed: int, propagated_tags: dict[str, str]) -> None:
        before = {state.instance.id for state in self.instance_states}
        launch(self, count_needed, propagated_tags)
        for state in self.instance_states:
            if state.instance.id not in before:
                state.instance.placement.group_name = self.placement_group

    AutoScalingResponse.zone_subnets = zone_subnets
    AutoScalingResponse.update_auto_scaling_group = updated
    Group.replace_autoscaling_group_instances = launched


def check_templates(backend: Any, policy: dict[str, Any]) -> None:
    for override in policy.get("LaunchTemplate", {}).get("Overrides") or []:
        name = override.get("LaunchTemplateSpecification", {}).get("LaunchTemplateName")
        if name and name not in backend.launch_template_name_to_ids:
            raise ValidationError(
                "You must use a valid fully-formed launch template. The specified launch template, with template name "
                f"{name}, does not exist."
            )


def check_placement(backend: Any, groups: dict[str, PlacementGroup], name: str | None, subnet_ids: list[str]) -> None:
    if not name:
        return
    if name not in groups:
        raise ValidationError(f"The placement group '{name}' does not exist.")
    zones = {backend.get_subnet(id).availability_zone for id in subnet_ids}
    if groups[name].strategy == "cluster" and len(zones) > 1:
        raise ValidationError("You cannot specify multiple Availability Zones and a cluster placement group.")
