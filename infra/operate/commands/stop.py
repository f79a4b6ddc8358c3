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
WAIT_SECONDS = 600  # a machine has 100 s to save, and EC2 takes its time
ASK_SECONDS = 3.0


def empty_groups(aws: Aws, installation: Installation) -> None:
    """Set both groups to 0, so that no machine is launched any more."""
    autoscaling = aws.client("autoscaling")
    for name in (installation.train_group, installation.prepare_group):
        with explained(f"set the Auto Scaling group {name} to 0"):
            if fleet.group_state(autoscaling, name):
                fleet.scale_to_zero(autoscaling, name)


def terminate_machines(aws: Aws, installation: Installation) -> dict[str, str]:
    """Terminate every machine of the installation, also one outside the groups. EC2 asks it to shut down, so it saves
    first.

    Returns the state of each machine that is not gone yet, by its id.
    """
    ec2, autoscaling = aws.client("ec2"), aws.client("autoscaling")
    with explained("terminate the machines"):
        machines = fleet.machines(ec2, installation.name)
        if billing := [machine.id for machine in machines if machine.is_billing]:
            ec2.terminate_instances(InstanceIds=billing)
        known = {machine.id: machine.state for machine in machines}
        for name in (installation.train_group, installation.prepare_group):
            group = fleet.group_state(autoscaling, name)
            for id in group.instance_ids if group else ():
                known.setdefault(id, "starting")  # EC2 does not show it yet; its group terminates it
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
    """Show the states of the machines until all are gone. Raises AwsError if that takes longer than `wait_seconds`."""
    began = time.monotonic()
    with LiveLine() as live:
        while left := terminate_machines(aws, installation):
            live.show(f"machines: {', '.join(f'{n} {state}' for state, n in sorted(Counter(left.values()).items()))}")
            if time.monotonic() > began + wait_seconds:
                raise AwsError(
                    f"still there after {duration(wait_seconds)}: {', '.join(f'{id} ({left[id]})' for id in left)}; "
                    "they were told to terminate: run the same command again, which goes on from here"
                )
            time.sleep(ASK_SECONDS)
    show_line("no machine is left: nothing bills by the hour")


def configure(parser: CommandLine) -> None:
    parser.add_argument("--no-wait", dest="wait", action="store_false", help="do not wait until the machines are gone")


def run(aws: Aws, installation: Installation, options: argparse.Namespace) -> int:
    run_id = active_run(aws, installation)
    empty_groups(aws, installation)
    machines = terminate_machines(aws, installation)
    schedules = delete_schedules(aws, installation)
    deleted = f"; deleted the stop at the deadline ({', '.join(schedules)})" if schedules else ""
    show_line(
        f"{run_id or 'no run was active'}: both groups are at 0, machines shutting down: {len(machines)}{deleted}"
    )
    if options.wait:
        wait_until_gone(aws, installation)
    again = f"make launch RUN={run_id}" if run_id else "make launch"
    next_commands(
        (again, "continue from the newest checkpoint" if run_id else "start a run"),
        ("make pull", "copy results here"),
        ("make destroy", "remove the stack as well; the data stays"),
    )
    return ExitCode.DONE
