"""An account in which everything is ready for `deploy` and `launch`, and the operator's commands as processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import boto3
import pytest

from infra.config import AMI
from tests import ROOT
from tests.emulator.aws import Aws

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


def infra(*arguments: str, stdin: str = "", **environment: str) -> Ended:
    """`python -m infra …` in the environment of this process."""
    process = subprocess.run(
        [sys.executable, "-m", "infra", *arguments], cwd=ROOT, env={**os.environ, **environment},
        input=stdin, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return Ended(process.returncode, process.stdout, process.stderr)


def rows(said: str) -> dict[str, tuple[str, str]]:
    """The table of preflight: state and text by the name of the check."""
    states = ("not needed", "ok", "failed", "unknown")
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
