"""`shell`: open a shell on a machine, through SSM Session Manager. It needs no key and no open port."""

from __future__ import annotations

import argparse
import os
import shutil
import sys

from infra.config import Installation
from infra.operate.command_line import CommandLine
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
    parser.option("node", "this machine, by its id; else the oldest that runs", default="", metavar="ID")


def choose_machine(machines: list[fleet.FleetMachine], asked: str) -> fleet.FleetMachine:
    running = [machine for machine in machines if machine.state == "running"]
    if not running:
        raise UserError("no machine runs: `make status` says why, `make launch` starts one")
    for machine in running:
        if machine.id == asked or not asked:
            return machine
    raise UserError(f"{asked!r} is no running machine: use one of: {', '.join(machine.id for machine in running)}")


def run(aws: Aws, installation: Installation, options: argparse.Namespace) -> int:
    for tool, source in TOOLS.items():
        if not shutil.which(tool):
            raise UserError(f"`{tool}` is not installed, and a shell needs it: install {source}")
    with explained("the machines"):
        machines = fleet.machines(aws.client("ec2"), installation.name)
    machine = choose_machine(machines, options.node)
    running = [other.id for other in machines if other.state == "running"]
    others = f" (of {len(running)}: {', '.join(running)}; NODE= chooses)" if len(running) > 1 else ""
    show_line(f"{machine.id}: {machine.type} in {machine.zone}{others}; leave: exit")
    show_line("the machine's log: sudo journalctl -f; the container's output: sudo docker logs resnet-spot")
    sys.stdout.flush()
    os.execvp("aws", ["aws", "ssm", "start-session", "--target", machine.id, "--region", aws.region])
