"""`policy`: print the smallest IAM policy with which a command works. It asks AWS only for the account's number."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from infra.config import Installation
from infra.operate.command_line import CommandLine
from infra.operate.rehearsal.scope import rehearsal_of
from infra.operate.rights.right import MANAGED_LETTERS, Names, Right, iam_policy, letters, managed_policies
from infra.operate.rights.table import rights_of
from infra.operate.session import Aws, ExitCode
from infra.operate.terminal import display, display_json, next_commands, show_line, table
from trainer.contract import UserError

HELP = "print the smallest IAM policy for a command, as JSON; without one, list the policies"
POLICIES: Mapping[str, str] = MappingProxyType({  # by name, and what each is for
    "preflight": "make preflight",
    "deploy": "make deploy NO_LAUNCH=1, through the roles of CDK's bootstrap; without NO_LAUNCH=1, launch as well",
    "secret": "make secret",
    "launch": "make launch",
    "prepare": "make prepare ON=aws",
    "status": "make status",
    "logs": "make logs",
    "runs": "make runs",
    "cost": "make cost",
    "pull": "make pull",
    "shell": "make shell",
    "stop": "make stop",
    "destroy": "make destroy",
    "purge": "what make destroy PURGE=1 needs beside destroy",
    "rehearse": "make rehearse, also with FIS=1: all that it does, with its own installation",
})  # fmt: skip


def configure(parser: CommandLine) -> None:
    parser.variables["COMMAND"] = parser.add_argument(
        "names", nargs="?", default="", metavar="COMMAND",
        help=f"a policy for this one, or for several with commas (make: COMMAND=): {', '.join(POLICIES)}",
    )  # fmt: skip
    parser.option("account", "the account's number (default: that of the credentials)", default="", metavar="NUMBER")


def run(aws: Aws, installation: Installation, options: argparse.Namespace) -> int:
    wanted = options.names.split(",") if options.names else []
    if unknown := [name for name in wanted if name not in POLICIES]:
        raise UserError(f"COMMAND={unknown[0]!r} has no policy: use one of {', '.join(POLICIES)}, or several with ','")
    if not re.fullmatch(r"([0-9]{12})?", options.account):
        raise UserError(f"ACCOUNT={options.account!r} is no account's number: it has 12 digits")
    names = Names(installation=installation, account=options.account or aws.account, region=aws.region)
    if wanted:
        parts = managed_policies(rights_by(names, wanted))
        display_json(parts if len(parts) > 1 else parts[0])
        if len(parts) > 1:
            show_line(
                f"{len(parts)} policies, in a JSON list: IAM takes {MANAGED_LETTERS:,} letters in one. "
                "Attach them all.",
                file=sys.stderr,
            )
        return ExitCode.DONE
    rows = [(name, *length(rights_by(names, [name])), what) for name, what in POLICIES.items()]
    display(table(rows, ("policy", "letters", "policies", "for")))
    show_line(f"IAM takes {MANAGED_LETTERS:,} letters in a managed policy, without white space")
    next_commands(
        ("make policy COMMAND=launch > launch.json", "one of them"),
        ("make policy COMMAND=status,logs,runs", "one policy for several commands"),
    )
    return ExitCode.DONE


def rights_by(names: Names, commands: Sequence[str]) -> tuple[Right, ...]:
    """What these commands need. A rehearsal has an installation of its own."""
    here = rights_of(names, [name for name in commands if name != "rehearse"])
    rehearsed = replace(names, installation=rehearsal_of(names.installation))
    return here + rights_of(rehearsed, [name for name in commands if name == "rehearse"])


def length(rights: Sequence[Right]) -> tuple[str, str]:
    return f"{letters(iam_policy(rights)):,}", str(len(managed_policies(rights)))
