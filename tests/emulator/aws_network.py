"""VPC block public access in the emulator, which moto 5.2.5 lacks: its mode is a setting, exclusions can be made."""

from __future__ import annotations

from collections.abc import Callable

from moto.core.responses import ActionResult
from moto.ec2.responses import EC2Response

from tests.emulator.aws_control import SETTINGS


def patch() -> dict[str, Callable[[], None]]:
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
    return {}
