"""Start a planned run: guards first, money last. These are plain functions on boto3 clients; the simulation calls them,
too.

`plan` decides what to start. The command `launch` talks to the user.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import botocore.exceptions

from infra.boot.handover import session_policy
from infra.config import PREPARE_PREFIX, Installation, schedule_names
from infra.operate.planning.offering import Site, offer
from infra.operate.session import explained
from infra.run import fleet
from infra.run.fleet import ON_DEMAND, SPOT, Clients, Group
from infra.run.spec import Spec
from trainer.contract import UserError, run_key

POLICY_LETTERS = 2048  # AWS's limit of a session policy
ASK_AGAIN_SECONDS = (1.0, 2.0)  # AWS promises nowhere that a group shows new tags at once: wait so long, and ask again


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where runs are started: what the two stacks made."""

    installation: Installation
    bucket: str
    scheduler_role: str
    subnet_ids: tuple[str, ...] = ()  # (): an older version deployed this
    placement_group: str = ""  # "": runs have one machine here

    def groups(self, spec: Spec) -> tuple[str, ...]:
        """The groups that the run may use. It begins in the first one, and the guard may change to the other."""
        spot, *others = self.installation.groups_of(spec.kind)
        if not others or (spec.market == SPOT and not spec.on_demand_after_minutes):
            return (spot,)
        return (spot, *others) if spec.market == SPOT else (*others,)

    def market(self, group: str, spec: Spec) -> str:
        """Each group of trainings has its own market. The only one of preparations takes that of the run."""
        if group == self.installation.prepare_group:
            return spec.market
        return ON_DEMAND if group == self.installation.on_demand_group else SPOT

    @property
    def partition(self) -> str:
        """AWS's partition: "aws", or "aws-cn" in China."""
        return self.scheduler_role.split(":")[1]


def start_run(
    client: Clients, place: Place, spec: Spec, types: Sequence[str], *, site: Site | None = None, replaces: str = ""
) -> None:
    """Start a run on machines of these types, the preferred first. `replaces` is the ETag of the spec of a run that
    goes on. Without `site` the machines start where those of the last run did.

    If this is interrupted, it has either started nothing that bills, or everything. Raises UserError if another run is
    active, or if somebody else has changed this run's spec meanwhile.
    """
    autoscaling, groups = client("autoscaling"), place.groups(spec)
    refuse_if_active(client, place, spec)
    _write_spec(client("s3"), place.bucket, spec, replaces)
    for group in groups:
        offer(autoscaling, group, place.market(group, spec), types, spec.nodes, site)
    # All groups of the kind: none keeps the tags of an earlier launch, with another deadline for the same run, and two
    # operators at once see each other's, whichever markets they chose.
    of_kind = place.installation.groups_of(spec.kind)
    fleet.assign(autoscaling, of_kind, spec.run_id, spec.deadline)
    _refuse_if_overtaken(autoscaling, of_kind, spec)  # before the schedules: those of other runs go then
    _schedule_stops(client("scheduler"), place, spec)
    _refuse_if_overtaken(autoscaling, of_kind, spec)
    fleet.scale(autoscaling, groups[0], spec.nodes)


def _refuse_if_overtaken(autoscaling: Any, groups: Sequence[str], spec: Spec) -> None:
    """Two operators may launch at once, and both find the groups free. The later one's tags stay, and the other ends.

    Between this question and a launch's last step there are milliseconds in which both could still go on.
    """
    for seconds in ASK_AGAIN_SECONDS:
        if not _find_other(autoscaling, groups, spec):
            return
        time.sleep(seconds)
    if other := _find_other(autoscaling, groups, spec):
        raise UserError(
            f"somebody else launches {other.run_id or 'another run'} at the same time, and RUN={spec.run_id} was "
            "not started: one run at a time; `make status` shows it, and the same command starts yours later"
        )


def _find_other(autoscaling: Any, groups: Sequence[str], spec: Spec) -> Group | None:
    """A group that is not this run's, or has been asked for machines."""
    found = fleet.read_groups(autoscaling, groups)
    return next((state for state in found if state.run_id != spec.run_id or state.desired), None)


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
    """Whether a group is already asked for machines for this run."""
    with explained("the Auto Scaling groups"):
        groups = fleet.read_groups(client("autoscaling"), place.installation.groups_of(kind))
    state = fleet.wanted_group(groups, run_id)
    return bool(run_id and state and state.desired)


def refuse_if_active(client: Clients, place: Place, spec: Spec) -> None:
    """Raises UserError if no run of this kind can start now."""
    installation = place.installation
    if active := find_active(client, installation, installation.groups_of(spec.kind)):
        raise UserError(f"{active}: one run at a time; `make status` shows it, `make stop` stops it")
    there = {group.name for group in fleet.read_groups(client("autoscaling"), installation.groups)}
    # All of them: the schedules of an older deploy have not the role to do what is asked of them here.
    if missing := [name for name in installation.groups if name not in there]:
        older = "an older version deployed this" if there else "nothing is deployed"
        raise UserError(
            f"the Auto Scaling group {missing[0]} does not exist, since {older}: `make deploy NO_LAUNCH=1` first"
        )


def find_active(client: Clients, installation: Installation, names: Sequence[str]) -> str:
    """Why the groups are not free, as a sentence. Returns "" if they are free."""
    for state in fleet.read_groups(client("autoscaling"), names):
        if state.desired:
            run = state.run_id or "(none named)"
            return f"the run {run} is active: {state.name} is asked for {state.desired} machine(s)"
    alive = [
        machine
        for machine in fleet.machines(client("ec2"), installation.name)
        if machine.is_billing and machine.group in ("", *names)
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


def _schedule_stops(scheduler: Any, place: Place, spec: Spec) -> None:
    """Make a one-time schedule for each group of the run, which sets it to 0 at the deadline.

    Schedules of earlier runs of this kind go.
    """
    known = stop_schedules(scheduler, place.installation.schedule_group)
    made = []
    for group in place.groups(spec):
        wanted = _stop_schedule(place, spec, group)
        if wanted["Name"] in known:
            scheduler.update_schedule(**wanted)
        else:
            scheduler.create_schedule(**wanted)
        made.append(wanted["Name"])
    for name in known:
        if name not in made and name.startswith(PREPARE_PREFIX) == (spec.kind == "prepare"):
            forget_schedule(scheduler, place.installation.schedule_group, name)


def _stop_schedule(place: Place, spec: Spec, group: str) -> dict[str, Any]:
    """A schedule that only sets the size: AWS asks nobody who does so for permissions on the launch template."""
    first, of_on_demand = schedule_names(spec.run_id)
    return {
        "GroupName": place.installation.schedule_group,
        "Name": of_on_demand if group == place.installation.on_demand_group else first,
        "Description": f"stops {group} at the deadline of {spec.run_id}",
        "ScheduleExpression": f"at({datetime.fromtimestamp(spec.deadline, UTC):%Y-%m-%dT%H:%M:%S})",
        "ScheduleExpressionTimezone": "UTC",
        "FlexibleTimeWindow": {"Mode": "OFF"},
        "ActionAfterCompletion": "DELETE",
        "Target": {
            "Arn": f"arn:{place.partition}:scheduler:::aws-sdk:autoscaling:setDesiredCapacity",
            "RoleArn": place.scheduler_role,
            "Input": json.dumps({"AutoScalingGroupName": group, "DesiredCapacity": 0}),
        },
    }


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
