"""Start a planned run: guards first, money last. These are plain functions on boto3 clients; the simulation calls them,
too.

`plan` decides what to start. The command `launch` talks to the user.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import botocore.exceptions

from infra.boot.handover import session_policy
from infra.config import PREPARE_PREFIX, Installation
from infra.operate.session import explained
from infra.run import fleet
from infra.run.fleet import Clients
from infra.run.spec import Spec
from trainer.contract import UserError, run_key

POLICY_LETTERS = 2048  # AWS's limit of a session policy


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where runs are started: what the two stacks made."""

    installation: Installation
    bucket: str
    scheduler_role: str

    def group(self, kind: str) -> str:
        return self.installation.train_group if kind == "train" else self.installation.prepare_group

    @property
    def partition(self) -> str:
        """AWS's partition: "aws", or "aws-cn" in China."""
        return self.scheduler_role.split(":")[1]


def start_run(client: Clients, place: Place, spec: Spec, types: Sequence[str], *, replaces: str = "") -> None:
    """Start a run on machines of these types, the preferred first. `replaces` is the ETag of the spec of a run that
    goes on.

    If this is interrupted, it has either started nothing that bills, or everything. Raises UserError if another run is
    active, or if somebody else has changed this run's spec meanwhile.
    """
    autoscaling, group = client("autoscaling"), place.group(spec.kind)
    refuse_if_active(client, place, spec)
    _write_spec(client("s3"), place.bucket, spec, replaces)
    fleet.offer(autoscaling, group, spec.market, types, spec.nodes)
    fleet.assign(autoscaling, group, spec.run_id, spec.deadline)
    _schedule_stop(client("scheduler"), place, spec)
    fleet.scale(autoscaling, group, spec.nodes)


def check_policy(place: Place, spec: Spec) -> None:
    """Raises UserError if AWS would refuse the credentials of the run's container, since they name too many files.

    A machine asks for them after it has started, and asks on until the deadline.
    """
    named = (re.fullmatch(r"(?:--[^=]*=)?(s3://.*)", argument) for argument in spec.arguments)  # as infra/boot/run does
    files = [found[1] for found in named if found]
    size = len(session_policy(spec.kind, place.bucket, spec.run_id, spec.data, files, place.partition))
    if size > POLICY_LETTERS:
        raise UserError(
            f"ARGS= names {len(files)} files in the bucket, so the policy of the run's credentials has {size} letters, "
            f"and AWS takes {POLICY_LETTERS}: name fewer files, or shorter names"
        )


def is_running(client: Clients, place: Place, kind: str, run_id: str) -> bool:
    """Whether the group is already asked for machines for this run."""
    with explained("the Auto Scaling group"):
        state = fleet.group_state(client("autoscaling"), place.group(kind))
    return bool(run_id and state and state.desired and state.run_id == run_id)


def refuse_if_active(client: Clients, place: Place, spec: Spec) -> None:
    group = place.group(spec.kind)
    if active := find_active(client, place.installation, group):
        raise UserError(f"{active}: one run at a time; `make status` shows it, `make stop` stops it")
    if fleet.group_state(client("autoscaling"), group) is None:
        raise UserError(f"the Auto Scaling group {group} does not exist: `make deploy`")


def find_active(client: Clients, installation: Installation, group: str) -> str:
    """Why the group is not free, as a sentence. Returns "" if it is free."""
    state = fleet.group_state(client("autoscaling"), group)
    if state and state.desired:
        return f"the run {state.run_id or '(none named)'} is active: {group} is asked for {state.desired} machine(s)"
    alive = [
        machine
        for machine in fleet.machines(client("ec2"), installation.name)
        if machine.is_billing and machine.group in ("", group)
    ]
    if alive:
        ids = ", ".join(machine.id for machine in alive)
        return f"the run {alive[0].run_id or '(none named)'} still has machines ({ids})"
    return ""


def _write_spec(s3: Any, bucket: str, spec: Spec, replaces: str) -> None:
    """Create the spec. For a run that goes on, replace its spec and delete `failed.json`, so that it may fail anew."""
    condition = {"IfMatch": replaces} if replaces else {"IfNoneMatch": "*"}
    try:
        s3.put_object(
            Bucket=bucket, Key=run_key(spec.run_id, "spec.json"), Body=spec.to_json(),
            ContentType="application/json", **condition,
        )  # fmt: skip
    except botocore.exceptions.ClientError as error:
        if error.response["Error"].get("Code") in ("PreconditionFailed", "ConditionalRequestConflict"):
            raise UserError(
                f"RUN={spec.run_id} was launched by someone else at the same time: `make status RUN={spec.run_id}`"
            ) from error
        raise
    if replaces:
        s3.delete_object(Bucket=bucket, Key=run_key(spec.run_id, "failed.json"))


def _schedule_stop(scheduler: Any, place: Place, spec: Spec) -> None:
    """Make the one-time schedule that sets the group to 0 at the deadline. Schedules of the group's earlier runs go."""
    group = place.installation.schedule_group
    wanted: dict[str, Any] = {
        "GroupName": group,
        "Name": spec.run_id,
        "Description": f"stops {place.group(spec.kind)} at the deadline of {spec.run_id}",
        "ScheduleExpression": f"at({datetime.fromtimestamp(spec.deadline, UTC):%Y-%m-%dT%H:%M:%S})",
        "ScheduleExpressionTimezone": "UTC",
        "FlexibleTimeWindow": {"Mode": "OFF"},
        "ActionAfterCompletion": "DELETE",
        "Target": {
            "Arn": f"arn:{place.partition}:scheduler:::aws-sdk:autoscaling:updateAutoScalingGroup",
            "RoleArn": place.scheduler_role,
            "Input": json.dumps({"AutoScalingGroupName": place.group(spec.kind), "MinSize": 0, "DesiredCapacity": 0}),
        },
    }
    known = stop_schedules(scheduler, group)
    if spec.run_id in known:
        scheduler.update_schedule(**wanted)
    else:
        scheduler.create_schedule(**wanted)
    for name in known:
        if name != spec.run_id and name.startswith(PREPARE_PREFIX) == (spec.kind == "prepare"):
            forget_schedule(scheduler, group, name)


def stop_schedules(scheduler: Any, group: str) -> list[str]:
    """The names of the installation's one-time schedules."""
    names: list[str] = []
    arguments = {"GroupName": group}
    while True:
        page = scheduler.list_schedules(**arguments)
        names += [one["Name"] for one in page["Schedules"]]
        if not (token := page.get("NextToken")):
            return names
        arguments["NextToken"] = token


def forget_schedule(scheduler: Any, group: str, name: str) -> None:
    try:
        scheduler.delete_schedule(GroupName=group, Name=name)
    except botocore.exceptions.ClientError as error:
        if error.response["Error"].get("Code") != "ResourceNotFoundException":
            raise
