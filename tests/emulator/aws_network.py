"""Networks in the emulator: VPC block public access, and a VPC that is not deleted while something is in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moto.core.responses import ActionResult
from moto.ec2.exceptions import DependencyViolationError
from moto.ec2.models import vpcs
from moto.ec2.responses import EC2Response

from tests.emulator.aws_control import SETTINGS


def patch() -> dict[str, Callable[[], None]]:
    block_public_access()
    vpcs_in_use_stay()
    return {}


def vpcs_in_use_stay() -> None:
    """moto deletes a VPC with endpoints and security groups in it."""
    delete = vpcs.VPCBackend.delete_vpc

    def deleted(self: Any, vpc_id: str) -> vpcs.VPC:
        endpoints = [id for id, one in self.vpc_end_points.items() if one.vpc_id == vpc_id and one.state != "deleted"]
        groups = [one.id for one in self.groups.get(vpc_id, {}).values() if one.name != "default"]
        if within := endpoints + groups:
            raise DependencyViolationError(f"The vpc '{vpc_id}' has dependencies and cannot be deleted: {within}")
        return delete(self, vpc_id)

    vpcs.VPCBackend.delete_vpc = deleted


def block_public_access() -> None:
    """moto lacks its calls: the mode is a setting, and exclusions can be made."""

    def options(self: EC2Response) -> ActionResult:
        told = {
            "AwsAccountId": self.current_account, "AwsRegion": self.region, "State": "update-complete",
            "InternetGatewayBlockMode": SETTINGS.block_public_access, "ExclusionsAllowed": "allowed",
        }  # fmt: skip
        return ActionResult({"VpcBlockPublicAccessOptions": told})

    def exclusion(self: EC2Response, id: str, mode: str) -> dict[str, str]:
        kind = id.partition("-")[0]
        return {
            "ExclusionId": f"vpcbpa-exclude-{id}", "InternetGatewayExclusionMode": mode, "State": "create-complete",
            "ResourceArn": f"arn:aws:ec2:{self.region}:{self.current_account}:{kind}/{id}",
        }  # fmt: skip

    def create(self: EC2Response) -> ActionResult:
        id = self._get_param("VpcId") or self._get_param("SubnetId")
        SETTINGS.exclusions[id] = self._get_param("InternetGatewayExclusionMode")
        return ActionResult({"VpcBlockPublicAccessExclusion": exclusion(self, id, SETTINGS.exclusions[id])})

    def describe(self: EC2Response) -> ActionResult:
        found = [exclusion(self, id, mode) for id, mode in SETTINGS.exclusions.items()]
        return ActionResult({"VpcBlockPublicAccessExclusions": found})

    EC2Response.describe_vpc_block_public_access_options = options
    EC2Response.create_vpc_block_public_access_exclusion = create
    EC2Response.describe_vpc_block_public_access_exclusions = describe
