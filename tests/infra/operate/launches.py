"""Starting a run in this process, as `launch` does it after its checks, and what it leaves in the account."""

from __future__ import annotations

import time
from typing import Any

from infra.config import Installation
from infra.operate.planning.options import Request
from infra.operate.planning.plan import Plan, make_plan
from infra.operate.planning.start import Place, start_run
from infra.operate.runs import open_bucket
from infra.operate.session import Aws as Operator
from infra.run import fleet
from infra.run.spec import Spec
from tests.infra.deployed import Deployed
from tests.infra.fleets import group_state
from tests.infra.operator import session
from trainer.contract import run_key

INSTALLATION = Installation()
GROUP, ON_DEMAND = INSTALLATION.groups_of("train")


def plan(asked: Request | None = None, **installation: str) -> Plan:
    operator = Operator(session())
    given = Installation(**installation)
    return make_plan(operator, given, open_bucket(operator, given), asked or Request(recipe="digits"), time.time())


def where(account: Deployed) -> Place:
    role = "arn:aws:iam::123456789012:role/stop"
    return Place(installation=INSTALLATION, bucket=account.bucket, scheduler_role=role)


def machines(account: Deployed) -> list[fleet.FleetMachine]:
    return fleet.machines(account.aws.client("ec2"), INSTALLATION.name)


def begin(account: Deployed, asked: Request | None = None) -> Spec:
    """Plan and start, as `launch` does after its checks."""
    planned = plan(asked)
    etag = planned.existing.etag if planned.existing else ""
    types = [one.type for one in planned.offered]
    start_run(Operator(session()).client, where(account), planned.spec, types, replaces=etag)
    return planned.spec


def group(account: Deployed, name: str = GROUP) -> fleet.Group:
    return group_state(account.aws.client("autoscaling"), name)


def schedule(account: Deployed, name: str) -> dict[str, Any]:
    found: dict[str, Any] = account.aws.client("scheduler").get_schedule(
        GroupName=INSTALLATION.schedule_group, Name=name
    )  # fmt: skip
    return found


def read_spec(account: Deployed, run_id: str) -> Spec:
    body = account.aws.client("s3").get_object(Bucket=account.bucket, Key=run_key(run_id, "spec.json"))["Body"].read()
    return Spec.from_json(body)


def stop(account: Deployed) -> None:
    fleet.scale_to_zero(account.aws.client("autoscaling"), GROUP)
