"""CloudFormation types that moto 5.2.5 lacks: made in their own service, or only recorded (RECORDED)."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from moto.cloudformation import parsing
from moto.cloudwatch.models import cloudwatch_backends
from moto.core.common_models import CloudFormationModel
from moto.logs import models as logs
from moto.scheduler.models import scheduler_backends
from moto.secretsmanager.models import secretsmanager_backends

from tests.emulator.aws_placement import PlacementGroup

RECORDED = (
    "AWS::S3::BucketPolicy", "AWS::SNS::TopicPolicy", "AWS::SecretsManager::ResourcePolicy",
)  # fmt: skip
IMPORTING = ContextVar("IMPORTING", default=False)  # whether the change set at work has ImportExistingResources


class Resource(CloudFormationModel):
    """A resource of a type that moto's CloudFormation does not have; it is known by its name alone."""

    __module__ = "moto.emulator.models"  # moto files its classes by the second part of their module
    name_property = ""

    def __init__(self, name: str, body: dict[str, Any], account: str, region: str) -> None:
        self.name = name

    @property
    def physical_resource_id(self) -> str:
        return self.name

    def get_cfn_attribute(self, attribute_name: str) -> str:
        return f"{self.name}-{attribute_name}"

    @classmethod
    def has_cfn_attr(cls, attr: str) -> bool:
        return True

    @classmethod
    def cloudformation_name_type(cls) -> str:
        return cls.name_property

    @classmethod
    def cloudformation_type(cls) -> str:
        return f"Emulator::{cls.__name__}"

    @classmethod
    def create_from_cloudformation_json(
        cls, name: str, body: dict[str, Any], account: str, region: str, **kwargs: Any
    ) -> Resource:
        return cls(body["Properties"].get(cls.name_property, name), body, account, region)

    @classmethod
    def update_from_cloudformation_json(cls, original_resource: Resource, **kwargs: Any) -> Resource:
        return original_resource

    @classmethod
    def delete_from_cloudformation_json(cls, *of_the_resource: Any) -> None:
        pass


class Secret(Resource):
    """Without a value, where the template gives none."""

    __module__ = "moto.emulator.models"
    name_property = "Name"

    def __init__(self, name: str, body: dict[str, Any], account: str, region: str) -> None:
        given, backend = body["Properties"], secretsmanager_backends[account][region]
        backend.create_secret(
            name, secret_string=given.get("SecretString"), secret_binary=None, description=given.get("Description"),
            tags=given.get("Tags", []), kms_key_id=None, client_request_token=None, replica_regions=[],
            force_overwrite=False,
        )  # fmt: skip
        self.name, self.arn = name, backend.secrets[name].arn

    @property
    def physical_resource_id(self) -> str:
        return self.arn

    @classmethod
    def delete_from_cloudformation_json(cls, name: str, body: Any, account: str, region: str) -> None:
        secretsmanager_backends[account][region].delete_secret(name, None, True)


class ScheduleGroup(Resource):
    __module__ = "moto.emulator.models"
    name_property = "Name"

    def __init__(self, name: str, body: dict[str, Any], account: str, region: str) -> None:
        super().__init__(name, body, account, region)
        group = scheduler_backends[account][region].create_schedule_group(name, body["Properties"].get("Tags", []))
        self.arn = group.arn

    def get_cfn_attribute(self, attribute_name: str) -> str:
        return self.arn if attribute_name == "Arn" else super().get_cfn_attribute(attribute_name)

    @classmethod
    def delete_from_cloudformation_json(cls, name: str, body: Any, account: str, region: str) -> None:
        scheduler_backends[account][region].schedule_groups.pop(name, None)


class Alarm(Resource):
    __module__ = "moto.emulator.models"
    name_property = "AlarmName"

    def __init__(self, name: str, body: dict[str, Any], account: str, region: str) -> None:
        super().__init__(name, body, account, region)
        given = body["Properties"]
        alarm = cloudwatch_backends[account][region].put_metric_alarm(
            name, given["Namespace"], given["MetricName"], given["ComparisonOperator"],
            int(given["EvaluationPeriods"]), int(given["Period"]), float(given["Threshold"]), given["Statistic"],
            given.get("AlarmDescription", ""), given.get("Dimensions", []), given.get("AlarmActions", []),
            tags=given.get("Tags"),
        )  # fmt: skip
        self.arn = alarm.alarm_arn

    @classmethod
    def delete_from_cloudformation_json(cls, name: str, body: Any, account: str, region: str) -> None:
        cloudwatch_backends[account][region].delete_alarms([name])


def arns_of_log_groups() -> None:
    """CloudFormation's Arn of a log group ends with ":*", as a statement for its streams needs it; moto's does not.

    docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/aws-resource-logs-loggroup.html
    """
    attribute = logs.LogGroup.get_cfn_attribute

    def with_streams(self: logs.LogGroup, attribute_name: str) -> str:
        value = str(attribute(self, attribute_name))
        return f"{value}:*" if attribute_name == "Arn" else value

    logs.LogGroup.get_cfn_attribute = with_streams


TYPES: dict[str, Any] = {
    "AWS::EC2::PlacementGroup": PlacementGroup,
    "AWS::SecretsManager::Secret": Secret,
    "AWS::Scheduler::ScheduleGroup": ScheduleGroup,
    "AWS::CloudWatch::Alarm": Alarm,
    **dict.fromkeys(RECORDED, Resource),
}


def patch() -> None:
    arns_of_log_groups()
    known, named = parsing.resource_class_from_type, parsing.resource_name_property_from_type

    def class_of(resource_type: str) -> Any:
        return TYPES.get(resource_type) or known(resource_type)

    def name_property(resource_type: str) -> str | None:
        return getattr(TYPES[resource_type], "name_property", "") if resource_type in TYPES else named(resource_type)

    parsing.resource_class_from_type = class_of
    parsing.resource_name_property_from_type = name_property
