"""CloudFormation in the emulator: what an unmodified `cdk bootstrap | deploy | destroy` needs beyond moto 5.2.5.

Each function that patches says which gap it closes. Nothing here is seen by the CDK app."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import urlparse

from moto.autoscaling import models as asg
from moto.cloudformation import models as cfn
from moto.cloudformation import parsing
from moto.cloudformation import responses as cfn_http
from moto.cloudformation.exceptions import CloudFormationError
from moto.core.exceptions import ServiceException
from moto.ec2.models import ec2_backends, internet_gateways, route_tables, subnets, vpcs, vpn_gateway
from moto.s3 import models as s3

from tests.emulator import aws_types
from tests.emulator.aws_control import SETTINGS
from tests.emulator.aws_types import IMPORTING

ACCOUNT, REGION = "123456789012", "us-east-1"


def patch() -> dict[str, Callable[[], None]]:
    template_urls_on_loopback()
    change_sets_make_outputs_and_exports()
    change_sets_by_name()
    buckets_have_versions_and_rules()
    existing_resources_are_imported()
    parts_of_a_vpc_are_deleted()
    aws_types.patch()
    deletions_that_fail()
    return {"stack_status": set_stack_status}


def set_stack_status() -> None:
    """A stack that does not exist is made, with nothing in it."""
    backend = cfn.cloudformation_backends[ACCOUNT][REGION]
    for name, status in SETTINGS.stack_status.items():
        if not any(stack.name == name for stack in backend.stacks.values()):
            nothing = '{"Resources": {"Nothing": {"Type": "AWS::CloudFormation::WaitConditionHandle"}}}'
            backend.create_stack(name, nothing, {})
        (stack,) = [stack for stack in backend.stacks.values() if stack.name == name]
        stack.status = status


def template_urls_on_loopback() -> None:
    """moto takes the bucket of a template's URL from AWS's host names only."""
    real = cfn_http.get_stack_from_s3_url

    def fetch(template_url: str, account_id: str, partition: str) -> str:
        url = urlparse(template_url)
        if url.hostname != "127.0.0.1":
            return real(template_url, account_id=account_id, partition=partition)
        bucket, key = url.path.lstrip("/").split("/", 1)
        return s3.s3_backends[account_id][partition].get_object(bucket, key).value.decode()

    cfn_http.get_stack_from_s3_url = fetch


def change_sets_make_outputs_and_exports() -> None:
    """A change set of moto sees no exports of other stacks, leaves the stack without outputs and exports, and a second
    one fails at UsePreviousValue."""
    apply, parse = cfn.ChangeSet.apply, parsing.ResourceMap.parse_ssm_parameter

    def applied(self: cfn.ChangeSet) -> None:
        stack = self.stack
        backend = cfn.cloudformation_backends[stack.account_id][stack.region_name]
        stack.cross_stack_resources = stack.resource_map.cross_stack_resources = backend.exports
        apply(self)
        stack.template, stack.template_dict = self.template, self.template_dict
        stack.description = stack.template_dict.get("Description")
        stack.parameters = dict(stack.resource_map.resolved_parameters, **(self.parameters or {}))
        stack.output_map = stack._create_output_map()
        backend.exports.update({export.name: export for export in stack.exports})

    def previous(self: Any, instance: Any, incoming_params: list[dict[str, str]]) -> dict[str, str]:
        known = {**instance.resource_map.resolved_parameters, **instance.parameters}
        return {
            p["ParameterKey"]: p["ParameterValue"] if "ParameterValue" in p else known[p["ParameterKey"]]
            for p in incoming_params
            if "ParameterValue" in p or p["ParameterKey"] in known
        }

    def resolved_once(self: parsing.ResourceMap, value: str, value_type: str) -> Any:
        return value if value in self.resolved_parameters.values() else parse(self, value, value_type)

    cfn.ChangeSet.apply = applied
    cfn.CloudFormationBackend._resolve_update_parameters = previous
    parsing.ResourceMap.parse_ssm_parameter = resolved_once


def change_sets_by_name() -> None:
    """moto takes the last change set of a name, of whichever stack, and breaks where there is none."""
    response, backend = cfn_http.CloudFormationResponse, cfn.CloudFormationBackend
    parameter, delete_change_set = response._get_param, backend.delete_change_set

    class NotFoundError(CloudFormationError):
        code = "ChangeSetNotFound"

    def by_id(self: Any, name: str, *default: Any) -> Any:
        value, stack = parameter(self, name, *default), parameter(self, "StackName")
        if name == "ChangeSetName" and stack and self._get_action() != "CreateChangeSet":
            stacks = self.cloudformation_backend.stacks  # those of deleted ones stay
            for key, change_set in self.cloudformation_backend.change_sets.items():
                is_named = value == change_set.change_set_name and stack in (change_set.stack_name, change_set.stack_id)
                if is_named and change_set.stack_id in stacks:
                    return key
        return value

    def describe(self: cfn.CloudFormationBackend, change_set_name: str) -> cfn.ChangeSet:
        if found := self.change_sets.get(change_set_name):
            return found
        raise NotFoundError(f"ChangeSet [{change_set_name}] does not exist")

    def delete(self: cfn.CloudFormationBackend, change_set_name: str) -> None:
        if change_set_name in self.change_sets:
            delete_change_set(self, change_set_name)

    response._get_param = by_id
    backend.describe_change_set, backend.delete_change_set = describe, delete


def buckets_have_versions_and_rules() -> None:
    """moto's CloudFormation leaves a bucket's versions and lifecycle out."""
    bucket = s3.FakeBucket
    create, update = bucket.create_from_cloudformation_json.__func__, bucket.update_from_cloudformation_json.__func__

    def settle(made: s3.FakeBucket, body: dict[str, Any]) -> s3.FakeBucket:
        given = body.get("Properties", {})
        if status := given.get("VersioningConfiguration", {}).get("Status"):
            made.versioning_status = status
        if rules := given.get("LifecycleConfiguration", {}).get("Rules"):
            made.set_lifecycle([rule_of_s3(rule) for rule in rules])
        return made

    def created(cls: Any, /, name: str, body: Any, account: str, region: str, **kwargs: Any) -> s3.FakeBucket:
        return settle(create(cls, name, body, account, region, **kwargs), body)

    def updated(cls: Any, /, original: Any, name: str, body: Any, account: str, region: str) -> s3.FakeBucket:
        body["Properties"].setdefault("BucketName", original.name)  # moto reads it beside the tags
        return settle(update(cls, original, name, body, account, region), body)

    bucket.create_from_cloudformation_json = classmethod(created)
    bucket.update_from_cloudformation_json = classmethod(updated)


def rule_of_s3(given: dict[str, Any]) -> dict[str, Any]:
    """A lifecycle rule of CloudFormation as moto reads S3's."""
    place: dict[str, Any] = {"Prefix": given.get("Prefix", "")}
    if tags := given.get("TagFilters"):
        place = {"And": place | {"Tag": tags}}
    expiration = {}
    if days := given.get("ExpirationInDays"):
        expiration["Days"] = days
    if given.get("ExpiredObjectDeleteMarker"):
        expiration["ExpiredObjectDeleteMarker"] = "true"
    alike = ("AbortIncompleteMultipartUpload", "NoncurrentVersionExpiration")
    return {
        "ID": given["Id"], "Status": given["Status"], "Filter": place,
        **({"Expiration": expiration} if expiration else {}), **{name: given[name] for name in alike if name in given},
    }  # fmt: skip


def existing_resources_are_imported() -> None:
    """moto does not know ImportExistingResources: a change set that takes over what exists under its name."""
    create, execute = cfn_http.CloudFormationResponse.create_change_set, cfn.CloudFormationBackend.execute_change_set
    make_bucket = s3.FakeBucket.create_from_cloudformation_json.__func__

    def created(self: Any) -> Any:
        answer = create(self)
        change_set = self.cloudformation_backend.change_sets[answer.result["Id"]]
        change_set.imports = self._get_bool_param("ImportExistingResources", False)
        return answer

    def executed(self: Any, change_set_name: str, stack_name: str | None = None) -> None:
        importing = IMPORTING.set(self.describe_change_set(change_set_name).imports)
        try:
            execute(self, change_set_name, stack_name)
        finally:
            IMPORTING.reset(importing)

    def bucket(cls: Any, /, name: str, body: Any, account: str, region: str, **kwargs: Any) -> Any:
        backend = s3.s3_backends[account]["aws"]
        if IMPORTING.get() and name in backend.buckets:
            return backend.buckets[name]
        return make_bucket(cls, name, body, account, region, **kwargs)

    cfn_http.CloudFormationResponse.create_change_set = created
    cfn.CloudFormationBackend.execute_change_set = executed
    s3.FakeBucket.create_from_cloudformation_json = classmethod(bucket)


def parts_of_a_vpc_are_deleted() -> None:
    """moto deletes a stack's VPC, but not these parts of it."""

    def endpoint(cls: type, name: str, body: Any, account: str, region: str) -> None:
        ec2_backends[account][region].vpc_end_points.pop(name, None)

    def table(cls: type, name: str, body: Any, account: str, region: str) -> None:
        ec2_backends[account][region].route_tables.pop(name, None)

    def gateway(cls: type, name: str, body: Any, account: str, region: str) -> None:
        ec2_backends[account][region].internet_gateways.pop(name, None)

    def nothing(cls: type, *of_the_resource: Any) -> None:
        """It goes with what it belongs to."""

    for model, delete in (
        (vpcs.VPCEndPoint, endpoint), (route_tables.RouteTable, table), (internet_gateways.InternetGateway, gateway),
        (route_tables.Route, nothing), (subnets.SubnetRouteTableAssociation, nothing),
        (vpn_gateway.VPCGatewayAttachment, nothing), (asg.FakeScheduledAction, nothing),
    ):  # fmt: skip
        model.delete_from_cloudformation_json = classmethod(delete)


def deletions_that_fail() -> None:
    """In moto no deletion of a stack ends in DELETE_FAILED, not even of one whose exports are in use."""
    delete = cfn.CloudFormationBackend.delete_stack

    def why_not(self: cfn.CloudFormationBackend, stack: cfn.Stack) -> str:
        for other in self.stacks.values():
            for export in stack.exports if other is not stack else []:
                if f'"{export.name}"' in json.dumps(other.template_dict):
                    return f"Export {export.name} cannot be deleted as it is in use by {other.name}"
        return SETTINGS.delete_failures.get(stack.name, "")

    def deleted(self: cfn.CloudFormationBackend, name_or_stack_id: str) -> None:
        stack = next((s for s in self.stacks.values() if name_or_stack_id in (s.name, s.stack_id)), None)
        reason = why_not(self, stack) if stack else ""
        if stack is None or not reason:
            try:
                delete(self, name_or_stack_id)
            except ServiceException as error:  # what one of its resources says
                if stack is None:
                    raise
                self.stacks[stack.stack_id], reason = stack, str(error)
        if stack and reason:
            stack._add_stack_event("DELETE_FAILED", resource_status_reason=reason)
            stack.status, stack.status_reason = "DELETE_FAILED", reason

    cfn.CloudFormationBackend.delete_stack = deleted
