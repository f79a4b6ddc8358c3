"""`stop`: terminate every machine and keep everything else. `destroy` begins with the same steps."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from contextlib import suppress

from infra.config import Installation
from infra.operate.command_line import CommandLine
from infra.operate.runs import active_run
from infra.operate.session import Aws, AwsError, ExitCode, explained
from infra.operate.terminal import LiveLine, next_commands, show_line
from infra.operate.text import duration
from infra.run import fleet

HELP = "save, stop and terminate every machine; the stacks, the data and the run stay"
# A machine has 100 s to save. EC2 may then take more than 10 minutes with one that has a GPU, and bills no second of
# that: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/ec2-instance-lifecycle.html
WAIT_SECONDS = 1200
ASK_SECONDS = 3.0
STARTING = "starting"  # our word for a machine that only its group knows as yet


def empty_groups(aws: Aws, installation: Installation) -> None:
    """Set all groups to 0, so that no machine is launched any more. One that AWS refuses does not spare the others.

    Raises AwsError if one was refused.
    """
    autoscaling = aws.client("autoscaling")
    with explained("the Auto Scaling groups"):
        groups = fleet.read_groups(autoscaling, installation.groups)
    refused: list[AwsError] = []
    for group in groups:
        try:
            with explained(f"set the Auto Scaling group {group.name} to 0"):
                fleet.scale_to_zero(autoscaling, group.name)
        except AwsError as error:
            refused.append(error)
    if refused:
        raise AwsError("; ".join(map(str, refused))) from refused[0]


def terminate_machines(aws: Aws, installation: Installation) -> dict[str, str]:
    """Terminate every machine of the installation, also one outside the groups. EC2 asks it to shut down, so it saves
    first. A group that somebody has asked for machines since, as the guard may, is set to 0 again.

    Returns the state of each machine that is not gone yet, by its id.
    """
    ec2, autoscaling = aws.client("ec2"), aws.client("autoscaling")
    with explained("terminate the machines"):
        groups = fleet.read_groups(autoscaling, installation.groups)
        for group in groups:
            if group.desired:
                fleet.scale_to_zero(autoscaling, group.name)
        machines = fleet.machines(ec2, installation.name)
        if billing := [machine.id for machine in machines if machine.is_billing]:
            ec2.terminate_instances(InstanceIds=billing)
        known = {machine.id: machine.state for machine in machines}
        for group in groups:
            for id in group.instance_ids:
                known.setdefault(id, STARTING)  # EC2 does not show it yet; its group terminates it
    return {id: state for id, state in known.items() if state != "terminated"}


def delete_schedules(aws: Aws, installation: Installation) -> list[str]:
    """Delete the one-time schedules that stop runs at their deadlines. Returns their names."""
    scheduler = aws.client("scheduler")
    with explained("delete the stop schedules"):
        try:
            pages = list(scheduler.get_paginator("list_schedules").paginate(GroupName=installation.schedule_group))
        except scheduler.exceptions.ResourceNotFoundException:
            return []
        names = [schedule["Name"] for page in pages for schedule in page["Schedules"]]
        for name in names:
            with suppress(scheduler.exceptions.ResourceNotFoundException):  # it ran in between
                scheduler.delete_schedule(GroupName=installation.schedule_group, Name=name)
    return names


def wait_until_gone(aws: Aws, installation: Installation, wait_seconds: float = WAIT_SECONDS) -> None:
    """Show the states of the machines until all are gone, for at most `wait_seconds`.

    Raises AwsError if one still bills then. One that is shutting down does not bill any more.
    """
    began = time.monotonic()
    with LiveLine() as live:
        while left := terminate_machines(aws, installation):
            live.show(f"machines: {', '.join(f'{n} {state}' for state, n in sorted(Counter(left.values()).items()))}")
            if time.monotonic() > began + wait_seconds:
                break
            time.sleep(ASK_SECONDS)
    if not left:
        show_line("no machine is left: nothing bills by the hour")
        return
    named = f"still there after {duration(wait_seconds)}: {', '.join(f'{id} ({left[id]})' for id in left)}"
    if any(state in (*fleet.BILLING_STATES, STARTING) for state in left.values()):
        raise AwsError(f"{named}; they were told to terminate: run the same command again, which goes on from here")
    show_line(f"{named}: EC2 takes its time, and bills none of it")


def configure(parser: CommandLine) -> None:
    parser.add_argument("--no-wait", dest="wait", action="store_false", help="do not wait until the machines are gone")


def run(aws: Aws, installation: Installation, options: argparse.Namespace) -> int:
    run_id = active_run(aws, installation)
    empty_groups(aws, installation)
    machines = terminate_machines(aws, installation)
    schedules = delete_schedules(aws, installation)
    deleted = f"; deleted the stop at the deadline ({', '.join(schedules)})" if schedules else ""
    show_line(f"{run_id or 'no run was active'}: all groups are at 0, machines shutting down: {len(machines)}{deleted}")
    if options.wait:
        wait_until_gone(aws, installation)
    again = f"make launch RUN={run_id}" if run_id else "make launch"
    next_commands(
        (again, "continue from the newest checkpoint" if run_id else "start a run"),
        ("make pull", "copy results here"),
        ("make destroy", "remove the stack as well; the data stays"),
    )
    return ExitCode.DONE
