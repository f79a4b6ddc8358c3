"""The checks of `preflight` on the machines: quota, role, types, zones, image, disk."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import botocore.exceptions

from infra.config import AMI, AMI_GIB, Installation
from infra.operate.checks.account import HOME_REGION, quota_value
from infra.operate.checks.finding import INFRA, Finding, Wanted, ok, unneeded, wrong
from infra.operate.installation.offers import offered_types
from infra.operate.installation.zones import zones_of_subnets
from infra.operate.planning import catalog
from infra.operate.planning.disks import (
    IMAGE_GIB,
    RoomError,
    Staged,
    choose_types,
    needed_gib,
    room_gb,
    staged_of,
    with_room,
    without_room,
)
from infra.operate.planning.options import nodes_of
from infra.operate.planning.plan import asked_work, find_dataset, make_plan

KEY_OPERATIONS = (
    "Encrypt", "Decrypt", "ReEncryptFrom", "ReEncryptTo", "GenerateDataKey", "GenerateDataKeyWithoutPlaintext",
    "DescribeKey", "CreateGrant",
)  # fmt: skip
PAID = "aws freetier upgrade-account-plan --account-plan-type PAID --region us-east-1"


def quota(wanted: Wanted) -> Finding:
    return _quota(wanted, wanted.market)


def fallback_quota(wanted: Wanted) -> Finding:
    if wanted.market != "spot" or not wanted.request.on_demand_after_minutes:
        return unneeded("no change to on-demand was asked for")
    return _quota(wanted, "on-demand")


def _quota(wanted: Wanted, market: str) -> Finding:
    names = offered_names(wanted)
    kind = catalog.quota_of(names[0])
    if kind is None:
        return Finding("unknown", f"no quota is known for {names[0]}")
    code = kind.code(market)
    types = [catalog.instance_type(name) for name in names if catalog.quota_of(name) == kind]
    allowed, used = quota_value(wanted, code), _used_vcpus(wanted, code, market)
    nodes = nodes_of(wanted.request)
    least, most = (nodes * f(type.vcpus for type in types) for f in (min, max))
    said = f"{code}, {kind.words} {market}: {allowed:g} vCPUs, {used:g} in use"
    fix = (
        "aws service-quotas request-service-quota-increase --service-code ec2 "
        f"--quota-code {code} --desired-value {used + most:g}"
    )
    if least > allowed - used:
        if not allowed and _is_on_free_plan(wanted):
            return wrong(f"{said}: the free plan starts no GPU: change to the paid plan, then ask for vCPUs", PAID)
        fits = int((allowed - used) * nodes // least)
        for_all = "" if nodes == 1 else f" for {nodes} machines" + (f", and NODES={fits} fits" if fits > 0 else "")
        return wrong(f"{said}, at least {least} needed{for_all}", fix)
    if small := [type.name for type in types if nodes * type.vcpus > allowed - used]:
        return ok(f"{said}; too few for {'' if nodes == 1 else f'{nodes} of '}{', '.join(small)}")
    return ok(said)


def offered_names(wanted: Wanted) -> Sequence[str]:
    """The types that a launch would ask for. A run of several offers few of the installation's: those near the best."""
    if nodes_of(wanted.request) == 1:
        return wanted.types
    try:
        plan = wanted.plan or make_plan(
            wanted.aws, wanted.installation, wanted.bucket, replace(wanted.request, anyway=True), time.time()
        )  # fmt: skip
    except RoomError:  # the check of the disk says so
        return wanted.types
    return [one.type for one in plan.offered]


def _is_on_free_plan(wanted: Wanted) -> bool:
    """Where AWS tells. An account of before July 2025 has no plan, and a user may not ask."""
    try:
        plan = wanted.aws.client("freetier").get_account_plan_state()
    except (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError):
        return False
    return bool(plan["accountPlanType"] == "FREE")


def _used_vcpus(wanted: Wanted, code: str, market: str) -> float:
    pages = wanted.aws.client("ec2").get_paginator("describe_instances").paginate(
        Filters=[{"Name": "instance-state-name", "Values": ["pending", "running"]}]
    )  # fmt: skip
    instances = [one for page in pages for reservation in page["Reservations"] for one in reservation["Instances"]]
    return sum(
        _vcpus(one)
        for one in instances
        if one.get("InstanceLifecycle", "on-demand") == market
        and (kind := catalog.quota_of(one["InstanceType"]))
        and kind.code(market) == code
    )


def _vcpus(instance: dict[str, Any]) -> int:
    if known := catalog.TYPES.get(instance["InstanceType"]):
        return known.vcpus
    return int(instance["CpuOptions"]["CoreCount"] * instance["CpuOptions"]["ThreadsPerCore"])


def spot_role(wanted: Wanted) -> Finding:
    if wanted.market != "spot":
        return unneeded("no spot machines")
    roles = wanted.aws.client("iam").list_roles(PathPrefix="/aws-service-role/spot.amazonaws.com/")["Roles"]
    if not roles:
        return wrong(
            "this account never had a spot machine",
            "aws iam create-service-linked-role --aws-service-name spot.amazonaws.com",
        )
    return ok(roles[0]["RoleName"])


def ami(wanted: Wanted) -> Finding:
    try:
        value = wanted.aws.client("ssm").get_parameter(Name=AMI)["Parameter"]["Value"]
    except botocore.exceptions.ClientError as error:
        if error.response["Error"].get("Code") != "ParameterNotFound":
            raise
        return wrong(f"{wanted.aws.region} has no {AMI}", "export AWS_REGION=us-east-1")
    return ok(value)


def disk(wanted: Wanted) -> Finding:
    """Data goes to the machine's NVMe. A machine without NVMe keeps it on the root volume."""
    if wanted.request.kind == "prepare":
        return unneeded("the machines of prepare have a volume of their own size")
    root = int(wanted.installation.disk_gib)
    least = AMI_GIB + IMAGE_GIB
    if root < least:
        fix = f"{INFRA} -c disk_gib={Installation().disk_gib} deploy"
        return wrong(f"{root} GiB have no room for the AMI ({AMI_GIB}) and the image ({IMAGE_GIB})", fix)
    work = asked_work(wanted.request)
    staged = staged_of(work, find_dataset(wanted.bucket, wanted.request) if wanted.bucket else None)
    try:
        types = choose_types(wanted.request.types, wanted.types, work, staged, root)
    except RoomError as error:
        others = with_room(Installation().instance_types.split(","), staged, root)
        fix = f"make launch TYPES={','.join(others[:3])}" if others else needed_disk(staged)
        return wrong(str(error), fix)
    room = min(room_gb(catalog.instance_type(name), root) for name in types)
    said = f"{root} GiB; room for {room:.0f} GB or more, the data takes {staged.gb:.0f} GB"
    small = without_room(wanted.types, staged, root)
    return ok(f"{said}; too little on {small}, left out" if small else said)


def disk_key(wanted: Wanted) -> Finding:
    """Machines' disks are encrypted with the account's default key. If that is one of its own, Auto Scaling may use it
    only where it was allowed to. Nobody but the key's policy and grants tell, so this is a warning.
    """
    key = str(wanted.aws.client("ec2").get_ebs_default_kms_key_id()["KmsKeyId"])
    if key.endswith("alias/aws/ebs"):
        return ok("AWS's own, which Auto Scaling may use")
    # https://docs.aws.amazon.com/autoscaling/ec2/userguide/key-policy-requirements-EBS-encryption.html
    role = f"{wanted.aws.account}:role/aws-service-role/autoscaling.amazonaws.com/AWSServiceRoleForAutoScaling"
    return Finding(
        "warning",
        f"disks get {key}: unless Auto Scaling was allowed to use it, no machine starts",
        f"aws kms create-grant --key-id {key} --grantee-principal arn:aws:iam::{role} "
        f"--operations {' '.join(KEY_OPERATIONS)}",
    )


def needed_disk(staged: Staged) -> str:
    return f"{INFRA} -c disk_gib={needed_gib(staged)} deploy"


def instance_types(wanted: Wanted) -> Finding:
    if wanted.offered and wanted.offered.trouble:
        raise wanted.offered.trouble
    if lacking := _lacking(wanted, "instance_types"):
        return lacking
    try:
        pages = wanted.aws.client("ec2").get_paginator("describe_instance_types").paginate(
            InstanceTypes=list(wanted.types)
        )  # fmt: skip
        found = {one["InstanceType"]: one for page in pages for one in page["InstanceTypes"]}
    except botocore.exceptions.ClientError as error:
        if error.response["Error"].get("Code") != "InvalidInstanceType":
            raise
        found = {}
    if missing := [name for name in wanted.types if name not in found]:
        return wrong(f"{wanted.aws.region} does not know {', '.join(missing)}", _without(wanted, missing))
    if wanted.request.kind == "train" and (without := [n for n, one in found.items() if not one.get("GpuInfo")]):
        return wrong(f"{', '.join(without)} have no GPU", _without(wanted, without))
    arms = [n for n, one in found.items() if "x86_64" not in one["ProcessorInfo"]["SupportedArchitectures"]]
    if arms:
        return wrong(f"{', '.join(arms)} are not x86_64, which the image is made for", _without(wanted, arms))
    left_out = wanted.offered.line(wanted.aws.region) if wanted.offered else ""
    return ok(f"{len(found)} types" + (f"; {left_out}" if left_out else ""))


def prepare_types(wanted: Wanted) -> Finding:
    """Both groups are deployed, whatever is launched."""
    names = wanted.installation.prepare_instance_types.split(",")
    return _lacking(wanted, "prepare_instance_types") or ok(f"{len(names)} types")


def _lacking(wanted: Wanted, field: str) -> Finding | None:
    """A group needs one type at least that the region offers."""
    listed = getattr(wanted.installation, field).split(",")
    if offered_types(wanted.aws, listed):
        return None
    of_kind = [
        one.name for one in catalog.TYPES.values() if one.gpus == 1 and bool(one.gpu) == (field == "instance_types")
    ]
    there = offered_types(wanted.aws, of_kind)
    others = [type for type in of_kind if type in there]
    fix = f"{INFRA} -c {field}={','.join(others)} deploy" if others else f"export AWS_REGION={HOME_REGION}"
    return wrong(f"{wanted.aws.region} offers no machine of {field}: {', '.join(listed)}", fix)


def pools(wanted: Wanted) -> Finding:
    """A pool is one type in one zone. The more pools there are, the more likely a spot machine is."""
    zones = _used_zones(wanted)
    pages = wanted.aws.client("ec2").get_paginator("describe_instance_type_offerings").paginate(
        LocationType="availability-zone", Filters=[{"Name": "instance-type", "Values": list(wanted.types)}]
    )  # fmt: skip
    offered = {(one["InstanceType"], one["Location"]) for page in pages for one in page["InstanceTypeOfferings"]}
    where = {zone: [name for name in wanted.types if (name, zone) in offered] for zone in zones}
    count = sum(map(len, where.values()))
    if not count:
        return wrong(f"none of the types is offered in {', '.join(zones)}", "export AWS_REGION=us-east-1")
    shared = ""
    if nodes_of(wanted.request) > 1:
        count, shared = max(map(len, where.values())), " in the zone with most, and all machines share one"
    said = f"{count} pools{shared}: " + ", ".join(f"{len(names)} types in {zone}" for zone, names in where.items())
    if lacking := sorted({name for name in wanted.types if not any(name in names for names in where.values())}):
        said += f"; nowhere {', '.join(lacking)}"
    if count < catalog.LEAST_POOLS and wanted.market == "spot":
        said += f"; with fewer than {catalog.LEAST_POOLS} spot capacity is often gone"
    return ok(said)


def _used_zones(wanted: Wanted) -> list[str]:
    installation = wanted.installation
    if installation.subnet_ids:
        answer = wanted.aws.client("ec2").describe_subnets(SubnetIds=installation.subnet_ids.split(","))
        return sorted({subnet["AvailabilityZone"] for subnet in answer["Subnets"]})
    return zones_of_subnets(wanted.aws, installation)


def _without(wanted: Wanted, wrong: Iterable[str]) -> str:
    kind = "instance_types" if wanted.request.kind == "train" else "prepare_instance_types"
    default = getattr(Installation(), kind).split(",")
    right = [name for name in wanted.types if name not in set(wrong)] or default[:3]
    return f"{INFRA} -c {kind}={','.join(right)} deploy"
