"""The operator's command line: `python -m infra <command>`; `make <command>` on top of it.

Exit codes: 0 done, 2 usage, 3 preflight failed, 4 AWS refused, 5 left-overs found, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import gc
import getpass
import io
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from email.utils import parsedate_to_datetime
from importlib import import_module
from typing import Any

import boto3
import botocore.session
from botocore.exceptions import BotoCoreError, ClientError
from botocore.utils import parse_timestamp

from infra.operate.command_line import CommandLine
from infra.operate.session import (
    Aws,
    AwsError,
    ExitCode,
    check_partition,
    explained,
    load_installation,
    reason_of,
    sentence,
)
from infra.operate.terminal import show_line, show_traceback
from trainer.contract import UserError

COMMANDS = (
    "preflight", "deploy", "launch", "prepare", "status", "logs", "runs", "cost", "pull", "stop", "shell", "secret",
    "destroy", "recipes", "rehearse", "policy",
)  # fmt: skip
MAKE = "--make"


def parse(arguments: Sequence[str], environ: Mapping[str, str]) -> argparse.Namespace:
    """What was asked for. The variables count only where `make` calls: RUN or ARGS may mean anything in a shell."""
    parser = CommandLine(
        prog="python -m infra", description="Train on one AWS spot GPU: deploy, launch, watch, stop, destroy.",
        epilog="exit codes: 0 done, 2 usage, 3 preflight failed, 4 AWS refused, 5 left-overs found",
    )  # fmt: skip
    parser.add_argument(
        "-c", dest="context", action="append", default=[], metavar="FIELD=VALUE",
        help="another value than cdk.json's, for example -c market=on-demand (again for more)",
    )  # fmt: skip
    parser.add_argument(MAKE, action="store_true", help="take the values of make's variables, too: RUN=, HOURS=, …")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    first = arguments[1:2] if arguments[:1] == [MAKE] else arguments[:1]
    for name in first if set(first) <= set(COMMANDS) and first else COMMANDS:  # the others take time to import
        module = import_module(f"infra.operate.commands.{name}")
        command = commands.add_parser(name, help=module.HELP, description=module.HELP)
        module.configure(command)
        if MAKE in arguments[:1]:
            command.read(environ)
        command.set_defaults(run=module.run)
    return parser.parse_args(arguments)


def open_session() -> boto3.Session:
    """Raises AwsError if AWS_PROFILE names no profile."""
    region = os.environ.get("AWS_REGION") or None  # boto3 alone reads only AWS_DEFAULT_REGION
    core = botocore.session.get_session()
    core.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=answer_time)
    with explained("your AWS credentials"):
        return boto3.Session(botocore_session=core, region_name=region)


def answer_time(told: Any) -> datetime:
    """A time in an answer of AWS. Those of S3's headers, such as `Sat, 28 Nov 2026 08:00:00 GMT`, need a tenth of what
    botocore needs for them, and `make runs` reads one with each object.
    """
    if isinstance(told, str) and told[3:5] == ", " and told.endswith(" GMT"):
        with suppress(ValueError):
            return parsedate_to_datetime(told)
    time: datetime = parse_timestamp(told)
    return time


def main() -> int:
    warnings.simplefilter("error", getpass.GetPassWarning)  # nobody could type an MFA code
    options = parse(sys.argv[1:], os.environ)
    aws: Aws | None = None
    try:
        installation = load_installation(options.context)
        aws = Aws(open_session())
        check_partition(aws.session)
        return int(options.run(aws, installation, options))
    except UserError as error:
        show_line(f"error: {error}", file=sys.stderr)
        return ExitCode.USAGE
    except AwsError as error:
        show_line(f"error: {reason_of(aws, error) if aws else error}", file=sys.stderr)
        return ExitCode.REFUSED
    except (BotoCoreError, ClientError) as error:
        show_line(f"error: {sentence(error)}", file=sys.stderr)
        return ExitCode.REFUSED
    except BrokenPipeError:
        return ExitCode.DONE
    except (KeyboardInterrupt, EOFError):  # Ctrl-C; Ctrl-D at a question
        show_line("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal may lack a letter
    sys.excepthook = show_traceback
    gc.set_threshold(100_000)  # botocore's models are many objects: to look through them again and again takes .1 s
    sys.exit(main())
