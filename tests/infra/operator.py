"""An account in which everything is ready for `deploy` and `launch`, and the operator's commands as processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

import boto3
import pytest

from infra.config import AMI, Installation
from infra.operate.command_line import CommandLine
from infra.operate.commands import cost, destroy, logs, preflight, pull, recipes, runs, shell, status, stop
from infra.operate.installation import leftovers
from infra.operate.session import Aws as Operator
from tests import ROOT
from tests.emulator.aws import Aws
from tests.infra.deployed import INSTALLATION
from tests.infra.hub import TOKEN

PATIENCE_SECONDS = 60
GIVEN_IMAGE = "registry.example/trainer@sha256:" + 64 * "0"  # as `image_uri`, so that no Docker engine is needed
COMMANDS = {
    "status": status, "logs": logs, "runs": runs, "cost": cost, "preflight": preflight, "stop": stop, "pull": pull,
    "shell": shell, "destroy": destroy, "recipes": recipes,
}  # fmt: skip
Calls = Callable[[], list[list[str]]]


@dataclass(frozen=True)
class Ended:
    code: int
    said: str
    error: str


@cache
def session() -> boto3.Session:
    """One for all tests, since making clients takes a second; they find the emulator in the environment."""
    return boto3.Session()


def prepare_account(aws: Aws) -> None:
    """What a user does once for an account."""
    aws.set(parameters={AMI: "ami-12345678"})
    aws.client("iam").create_service_linked_role(AWSServiceName="spot.amazonaws.com")
    aws.client("ssm").put_parameter(Name="/cdk-bootstrap/hnb659fds/version", Value="30", Type="String")


def put_token(aws: Aws, token: str = TOKEN) -> None:
    aws.client("secretsmanager").put_secret_value(SecretId=Installation().secret_name, SecretString=token)


def infra(*arguments: str, stdin: str = "", **environment: str) -> Ended:
    """`python -m infra …` in the environment of this process."""
    process = subprocess.run(
        [sys.executable, "-m", "infra", *arguments], cwd=ROOT, env={**os.environ, **environment},
        input=stdin, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return Ended(process.returncode, process.stdout, process.stderr)


@cache
def operator() -> Operator:
    """Whose credentials and endpoint are those that the fixture `aws` has set, the same in all tests."""
    return Operator(boto3.Session())


def operate(command: str, *arguments: str, installation: Installation = INSTALLATION) -> int:
    """A command of the operator in this process: its exit code."""
    parser = CommandLine()
    COMMANDS[command].configure(parser)
    return int(COMMANDS[command].run(operator(), installation, parser.parse_args(arguments)))


class Command:
    """`python -m infra …` in a process of its own, its lines as they come."""

    def __init__(self, aws: Aws, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "infra", *arguments], cwd=ROOT, env=aws.environ | {"PATH": os.environ["PATH"]},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.lines: list[str] = []
        self.notes: list[str] = []  # on standard error
        pipes = ((self.process.stdout, self.lines), (self.process.stderr, self.notes))
        self.readers = [threading.Thread(target=self.read, args=pair, daemon=True) for pair in pipes]
        for reader in self.readers:
            reader.start()

    @staticmethod
    def read(pipe: IO[str], into: list[str]) -> None:
        with pipe:
            for line in pipe:
                into.append(line.rstrip("\n"))

    def wait_for(self, is_true: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not is_true():
            if time.monotonic() > deadline or self.process.poll() is not None:
                pytest.fail(f"it did not come; exit {self.process.poll()}\n{self.lines}\n{self.notes}")
            time.sleep(0.02)

    def end(self) -> int:
        """Its exit code, once it has ended by itself."""
        code = self.process.wait(timeout=PATIENCE_SECONDS)
        for reader in self.readers:
            reader.join(timeout=PATIENCE_SECONDS)
        return code


class Commands:
    """Commands that are ended with the test."""

    def __init__(self, aws: Aws) -> None:
        self.aws, self.started = aws, list[Command]()

    def start(self, *arguments: str) -> Command:
        self.started.append(Command(self.aws, *arguments))
        return self.started[-1]

    def __enter__(self) -> Commands:
        return self

    def __exit__(self, *error: object) -> None:
        for command in self.started:
            command.process.kill()
            command.end()


def left(installation: Installation = INSTALLATION) -> list[str]:
    """What `destroy` finds in the account that an installation left."""
    return [one.service for one in leftovers.find(operator(), installation)]


def rows(said: str) -> dict[str, tuple[str, str]]:
    """The table of preflight: state and text by the name of the check."""
    states = ("not needed", "warning", "ok", "failed", "unknown")
    found = {}
    for line in said.splitlines():
        for state in states:
            name, separator, text = line.partition(f"  {state}  ")
            if separator and name.strip() not in found:
                found[name.strip()] = (state, text.strip())
                break
    return found


def fixes(said: str) -> dict[str, str]:
    _, _, below = said.partition("\nfix:\n")
    lines: Sequence[Any] = [line.strip().split("  ", 1) for line in below.splitlines() if line.startswith("  ")]
    return {name: fix.strip() for name, fix in lines}


def stand_in_for_cdk(folder: Path, monkeypatch: pytest.MonkeyPatch, *, code: int = 0, deploys: bool = False) -> Calls:
    """A Node.js that runs no CDK: it writes its arguments down and, if told so, makes the stacks itself."""
    calls, node = folder / "calls", folder / "node"
    deploy = "from tests.emulator.aws import Aws; from tests.infra import deployed"
    deploy += "; deployed.deploy(Aws(os.environ['AWS_ENDPOINT_URL']))"
    node.write_text(
        f"#!{sys.executable}\nimport json, os, sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        f"with open({str(calls)!r}, 'a') as file:\n    print(json.dumps(sys.argv[2:]), file=file)\n"
        f"{deploy if deploys else ''}\nsys.exit({code})\n"
    )
    node.chmod(0o755)
    monkeypatch.setenv("JSII_NODE", str(node))
    return lambda: [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []
