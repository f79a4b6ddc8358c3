"""`shell`: open a shell on a machine, through SSM Session Manager. It needs no key and no open port."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence

from infra.config import Installation
from infra.operate.command_line import CommandLine
from infra.operate.nodes import choose_node, read_nodes
from infra.operate.runs import open_bucket
from infra.operate.session import Aws, explained
from infra.operate.terminal import show_line
from infra.run import fleet
from trainer.contract import UserError

HELP = "open a shell on the machine, through SSM Session Manager (no key pair, no open port)"
TOOLS = {  # where they come from
    "aws": "the AWS CLI: https://docs.aws.amazon.com/cli/latest/userguide/getting-started-install.html",
    "session-manager-plugin": "its Session Manager plugin: "
    "https://docs.aws.amazon.com/systems-manager/latest/userguide/session-manager-working-with-install-plugin.html",
}


def configure(parser: CommandLine) -> None:
    parser.option("node", "this machine, by its id; else the one that leads the run", default="", metavar="ID")


def choose_machine(
    aws: Aws, installation: Installation, running: Sequence[fleet.FleetMachine], asked: str
) -> fleet.FleetMachine:
    """The one that is asked for, else the head of the run, else the oldest. Raises UserError if there is none.

    A training comes before a preparation that runs beside it.
    """
    if not running:
        raise UserError("no machine runs: `make status` says why, `make launch` starts one")
    ids = {machine.id: machine for machine in running}
    if asked:
        return ids[choose_node(asked, ids)]
    training = installation.groups_of("train")
    first = next((machine for machine in running if machine.group in training), running[0])
    of_run = [machine.id for machine in running if machine.run_id == first.run_id]
    bucket = open_bucket(aws, installation) if len(of_run) > 1 else None
    records, _ = read_nodes(bucket, first.run_id, of_run) if bucket else ({}, [])
    heads = [id for id, record in records.items() if record.role == "head" and not record.ended]
    return ids[max(heads, key=lambda id: records[id].at)] if heads else first


def run(aws: Aws, installation: Installation, options: argparse.Namespace) -> int:
    for tool, source in TOOLS.items():
        if not shutil.which(tool):
            raise UserError(f"`{tool}` is not installed, and a shell needs it: install {source}")
    with explained("the machines"):
        machines = fleet.machines(aws.client("ec2"), installation.name)
    running = [machine for machine in machines if machine.state == "running"]
    machine = choose_machine(aws, installation, running, options.node)
    ids = ", ".join(other.id for other in running)
    others = f" (of {len(running)}: {ids}; NODE= chooses)" if len(running) > 1 else ""
    show_line(f"{machine.id}: {machine.type} in {machine.zone}{others}; leave: exit")
    show_line("the machine's log: sudo journalctl -f; the container's output: sudo docker logs resnet-spot")
    sys.stdout.flush()
    os.execvp("aws", ["aws", "ssm", "start-session", "--target", machine.id, "--region", aws.region])
