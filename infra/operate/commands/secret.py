"""`secret`: read the Hugging Face token, or a webhook's address, from standard input and store it in Secrets Manager.

Never prints it.
"""

from __future__ import annotations

import argparse
import getpass
import re
import sys
from dataclasses import dataclass

from infra.config import Installation
from infra.operate.command_line import CommandLine
from infra.operate.installation import cdk
from infra.operate.installation.stack_states import has_stack
from infra.operate.installation.token import blocking_secret, find_secret, store_part
from infra.operate.session import Aws, ExitCode, explained
from infra.operate.terminal import next_commands, show_line
from trainer.contract import UserError

HELP = "put the Hugging Face token, or a webhook's address, read from standard input, into Secrets Manager"


@dataclass(frozen=True, kw_only=True)
class SecretPart:
    """One part of the secret, and how to speak of it."""

    what: str
    title: str
    form: str  # a pattern
    rule: str  # the form in words
    where: str  # to get one
    stored: str  # who uses it now
    then: tuple[str, str]  # a command that follows, and what for


PARTS = {
    "hf_token": SecretPart(
        what="token", title="Hugging Face token", form=r"hf_[A-Za-z0-9]{10,200}",
        rule="it has the form hf_ and letters and digits",
        where="make one that may read at the hub, under Settings, Access Tokens",
        stored="the machines read it with their role",
        then=("make preflight", "check that the dataset accepts it, and everything else"),
    ),
    "webhook": SecretPart(
        what="webhook", title="webhook's address", form=r"https://[A-Za-z0-9.:-]{1,255}/(?=.)[!-~]{0,1700}",
        rule="it begins with https:// and a host, and has no spaces",
        where="make one in Slack (Incoming Webhooks) or Discord (Integrations), or name a server of yours",
        stored="machines that start from now on send alerts to it",
        then=("make launch", "start a run, which tells that it has started"),
    ),
}  # fmt: skip


def configure(parser: CommandLine) -> None:
    """There is no option for the secret itself: an argument shows in the process list and in the shell's history."""
    parser.option(
        "name", "what is stored: hf_token (the default), or webhook", choices=tuple(PARTS), default="hf_token"
    )


def run(aws: Aws, installation: Installation, options: argparse.Namespace) -> int:
    part = PARTS[options.name]
    value, name = read_secret(part), installation.secret_name
    with explained(f"the secret {name}"):
        is_deployed = has_stack(aws, installation.storage_stack)
        blocking = blocking_secret(find_secret(aws, name), name, is_deployed=is_deployed)
    if blocking:
        raise UserError("{}: `{}`, then `make secret` again".format(*blocking))
    if not is_deployed:
        show_line(f"the secret belongs to the stack {installation.storage_stack}, which is deployed first")
        cdk.deploy(aws, installation, installation.storage_stack)
    with explained(f"put the {part.what} into the secret {name}"):
        store_part(aws, name, options.name, value)
    show_line(f"the {part.what} is in the secret {name}; {part.stored}")
    next_commands(part.then)
    return ExitCode.DONE


def read_secret(part: SecretPart) -> str:
    """Read it; a terminal does not show it. Raises UserError if it is of another form, without repeating it."""
    is_typed = sys.stdin.isatty()
    value = (getpass.getpass(f"{part.title} (hidden): ") if is_typed else sys.stdin.readline()).strip()
    if not value:
        raise UserError(f"no {part.what} came from standard input: {part.where}; then `make secret < file`, or type it")
    if not re.fullmatch(part.form, value):
        raise UserError(
            f"what came from standard input is not a {part.title} ({len(value)} characters): {part.rule}; {part.where}"
        )
    return value
