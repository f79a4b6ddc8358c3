"""What an account is given, in the emulator: quotas, public parameters, the default key of disks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from moto.core.responses import ActionResult
from moto.ec2.responses.elastic_block_store import ElasticBlockStore
from moto.kms import kms_backends
from moto.servicequotas.exceptions import NoSuchResource
from moto.servicequotas.models import ServiceQuotasBackend
from moto.servicequotas.responses import ServiceQuotasResponse
from moto.ssm import models as ssm

from tests.emulator.aws_control import SETTINGS

KEY_OF_AWS = "alias/aws/ebs"


def patch() -> dict[str, Callable[[], None]]:
    quotas()
    public_parameters()
    key_of_the_disks()
    return {}


def quotas() -> None:
    """moto knows the quotas of VPC alone, as defaults."""

    def entry(code: str) -> dict[str, Any]:
        service = {"L-F678F1CE": "vpc", "L-9D07B6EF": "codebuild"}.get(code, "ec2")
        return {"ServiceCode": service, "QuotaCode": code, "QuotaName": code, "Value": SETTINGS.quotas[code]}

    def get(self: ServiceQuotasBackend, service_code: str, quota_code: str) -> dict[str, Any]:
        if quota_code not in SETTINGS.quotas or entry(quota_code)["ServiceCode"] != service_code:
            raise NoSuchResource
        return entry(quota_code)

    def listed(self: ServiceQuotasResponse) -> ActionResult:
        entries = [entry(code) for code in SETTINGS.quotas]
        return ActionResult({"Quotas": [e for e in entries if e["ServiceCode"] == self._get_param("ServiceCode")]})

    ServiceQuotasBackend.get_service_quota = get
    ServiceQuotasResponse.list_service_quotas = listed


def public_parameters() -> None:
    """moto has few public parameters of SSM, and refuses to put more."""
    check = ssm.ParameterDict._check_loading_status

    def loaded(self: ssm.ParameterDict, key: str) -> None:
        check(self, key)
        if key in SETTINGS.parameters and not dict.__contains__(self, key):
            parameter = ssm.Parameter(
                account_id=self.account_id, name=key, value=SETTINGS.parameters[key], parameter_type="String",
                description=None, allowed_pattern=None, keyid=None, last_modified_date=time.time(), version=1,
                data_type="text",
            )  # fmt: skip
            dict.setdefault(self, key, []).append(parameter)

    ssm.ParameterDict._check_loading_status = loaded


def key_of_the_disks() -> None:
    """moto tells nobody the account's default key of disks. With the first encrypted disk it makes AWS's own key."""

    def told(self: ElasticBlockStore) -> ActionResult:
        keys, default = kms_backends[self.current_account][self.region], self.ec2_backend.default_kms_key_id
        of_aws = keys.describe_key(KEY_OF_AWS).arn if keys.alias_exists(KEY_OF_AWS) else ""
        return ActionResult({"KmsKeyId": KEY_OF_AWS if default in ("", of_aws) else default})

    ElasticBlockStore.get_ebs_default_kms_key_id = told
