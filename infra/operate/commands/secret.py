"""`secret`: read the Hugging Face token from standard input and store it in Secrets Manager. Never prints it."""

from __future__ import annotations

import argparse
import getpass
import re
import sys

from infra.config import Installation
from infra.operate.command_line import CommandLine
from infra.operate.installation import cdk
from infra.operate.session import Aws, ExitCode, explained
from infra.operate.terminal import next_commands, show_line
from trainer.contract import UserError

HELP = "put the Hugging Face token, read from standard input, into Secrets Manager"
FORM = r"hf_[A-Za-z0-9]{10,200}"
WHERE = "make one that may read at the hub, under Settings, Access Tokens"


def configure(parser: CommandLine) -> None:
    """There is no option for the token: an argument shows in the process list and in the shell's history."""


def run(aws: Aws, installation: Installation, options: argparse.Namespace) -> int:
    token = read_token()
    if not aws.outputs(installation.storage_stack):
        show_line(f"the secret belongs to the stack {installation.storage_stack}, which is deployed first")
        cdk.deploy(aws, installation, installation.storage_stack)
    with explained(f"put the token into the secret {installation.secret_name}"):
        aws.client("secretsmanager").put_secret_value(SecretId=installation.secret_name, SecretString=token)
    show_line(f"the token is in the secret {installation.secret_name}; the machines read it with their role")
    next_commands(("make preflight", "check that the dataset accepts it, and everything else"))
    return ExitCode.DONE


def read_token() -> str:
    """Read the token; a terminal does not show it. Raises UserError if it is not a token, without repeating it."""
    is_typed = sys.stdin.isatty()
    token = (getpass.getpass("Hugging Face token (hidden): ") if is_typed else sys.stdin.readline()).strip()
    if not token:
        raise UserError(f"no token came from standard input: {WHERE}; then `make secret < file`, or type it")
    if not re.fullmatch(FORM, token):
        raise UserError(
            f"what came from standard input is not a Hugging Face token ({len(token)} characters): it has the form "
            f"hf_ and letters and digits; {WHERE}"
        )
    return token
