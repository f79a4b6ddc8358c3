"""`preflight`: show every reason why a deploy or a launch would fail, each with its fix. Changes nothing."""

from __future__ import annotations

import argparse
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from infra.config import Installation
from infra.operate.checks import account, beginning, image, machines, network
from infra.operate.checks import run as run_checks
from infra.operate.checks.finding import Finding, Wanted
from infra.operate.command_line import CommandLine
from infra.operate.installation.engine import PLACES
from infra.operate.installation.offers import offered_here
from infra.operate.planning import options
from infra.operate.planning.options import Request
from infra.operate.planning.plan import Plan
from infra.operate.planning.refusals import check, check_gpus
from infra.operate.session import Aws, AwsError, ExitCode
from infra.operate.terminal import display, display_commands, display_json, next_commands, styled, table
from trainer.contract import UserError

HELP = "check everything that a deploy and a run need, before anything costs money"
LIMIT_SECONDS = 14.0  # what has not answered by then is unknown
Check = Callable[[Wanted], Finding]
LAUNCH: Mapping[str, Check] = MappingProxyType(
    {
        "region": account.region,
        "vCPU quota": machines.quota,
        "vCPU quota of on-demand": machines.fallback_quota,
        "spot role": machines.spot_role,
        "instance types": machines.instance_types,
        "types of prepare": machines.prepare_types,
        "zones": machines.pools,
        "public access": network.public_access,
        "internet": network.way_out,
        "S3 endpoint": network.s3_endpoint,
        "machine image": machines.ami,
        "disk": machines.disk,
        "key of the disks": machines.disk_key,
        "bucket": run_checks.bucket,
        "data": run_checks.data,
        "token": run_checks.token,
        "gate of the hub": run_checks.gate,
        "budget": run_checks.budget,
        "mail": run_checks.mail,
        "other runs": run_checks.alone,
    }
)
DEPLOY: Mapping[str, Check] = MappingProxyType(
    {
        "CDK bootstrap": account.bootstrap,
        "CDK command line": account.cdk_command_line,
        "Docker": image.docker,
        "image build": image.image_build,
        "VPC": network.vpc,
        "stacks": account.stacks,
        "other runs": run_checks.idle,
    }
)
OFFLINE = ("CDK command line", "Docker")  # need no credentials
ASKED_SERVICES = (
    "cloudformation",
    "ec2",
    "freetier",
    "iam",
    "s3",
    "secretsmanager",
    "service-quotas",
    "ssm",
    "sts",
    "autoscaling",
)
CHECK_STYLES = MappingProxyType(
    {"ok": "green", "warning": "yellow", "failed": "red", "unknown": "yellow", "not needed": "dim"}
)


def build_option(parser: CommandLine) -> None:
    parser.option(
        "build", "where the image is built: local, with Docker, or aws, by CodeBuild (default: local, if an engine for "
        "x86-64 answers)", choices=PLACES, default="",
    )  # fmt: skip


def configure(parser: CommandLine) -> None:
    options.configure(parser)
    build_option(parser)
    parser.json_option()


def run(aws: Aws, installation: Installation, given: argparse.Namespace) -> int:
    request, as_json = options.request_and_json(given)
    if as_json:
        return print_json(aws, installation, request, given.build)
    if not preflight(aws, installation, request, None, deploys=True, build=given.build):
        return ExitCode.PREFLIGHT
    next_commands(("make deploy", "deploy and launch"), ("make launch", "launch, where it is deployed"))
    return ExitCode.DONE


def preflight(
    aws: Aws, installation: Installation, request: Request, plan: Plan | None, *, deploys: bool, build: str = ""
) -> bool:
    """Print a table of all checks, and return whether none failed. Raises UserError if the request is not valid."""
    began = time.monotonic()
    findings = findings_of(aws, installation, request, plan, deploys=deploys, build=build)
    failures = {name: one for name, one in findings.items() if one.state == "failed"}
    display(
        table((name, styled(one.state, CHECK_STYLES[one.state]), one.said) for name, one in findings.items()),
        styled(f"{len(findings)} checks in {time.monotonic() - began:.1f} s, {len(failures)} failed", "dim"),
    )
    if commands := [(name, one.fix) for name, one in findings.items() if one.fix]:
        display("\nfix:")
        display_commands(commands)
    if beginning.ACCOUNT in findings:
        display("\nin this order:", *beginning.hints(findings))
    return not failures


def print_json(aws: Aws, installation: Installation, request: Request, build: str) -> int:
    findings = findings_of(aws, installation, request, None, deploys=True, build=build)
    checks = [{"name": name, "state": one.state, "said": one.said, "fix": one.fix} for name, one in findings.items()]
    has_failed = any(one.state == "failed" for one in findings.values())
    display_json({"failed": has_failed, "checks": checks})
    return ExitCode.PREFLIGHT if has_failed else ExitCode.DONE


def findings_of(
    aws: Aws, installation: Installation, request: Request, plan: Plan | None, *, deploys: bool, build: str
) -> dict[str, Finding]:
    """The finding of each check, by the check's name. Raises UserError if the request is not valid."""
    check(request, installation)
    if not request.run_id:  # else its spec may tell the precision: the plan reads it
        check_gpus(request, installation)
    wanted = Wanted(aws=aws, installation=installation, request=request, plan=plan, build=build)
    return find_all(wanted, {**LAUNCH, **(DEPLOY if deploys else {})})


def find_all(wanted: Wanted, selected: Mapping[str, Check]) -> dict[str, Finding]:
    """Run all checks at the same time, each in a thread. A check that takes too long is unknown, and nobody waits for
    it.
    """
    deadline = time.monotonic() + LIMIT_SECONDS
    first, is_region = make(account.credentials, wanted), account.is_region(wanted.aws)
    if first.state != "ok" or not is_region:
        why = Finding("unknown", "needs credentials" if first.state != "ok" else "needs a region")
        offline = OFFLINE if is_region else (*OFFLINE, "region")
        asked = {name: make(one, wanted) for name, one in selected.items() if name in offline}
        return beginning.first_hour(wanted, {"credentials": first, **dict.fromkeys(selected, why), **asked})
    for service in ASKED_SERVICES:  # making a client is not for several threads
        wanted.aws.client(service)
    offered = offered_here(wanted.aws, wanted.installation)
    wanted = replace(wanted, outputs=_outputs(wanted), installation=offered.installation, offered=offered)
    findings = {
        "credentials": first,
        **dict.fromkeys(selected, Finding("unknown", f"no answer in {LIMIT_SECONDS:g} s")),
    }
    answers: queue.Queue[tuple[str, Finding]] = queue.Queue()

    def answer(name: str) -> None:
        answers.put((name, make(selected[name], wanted)))

    for name in selected:
        threading.Thread(target=answer, args=(name,), daemon=True).start()
    try:
        for _ in selected:
            name, finding = answers.get(timeout=max(0.0, deadline - time.monotonic()))
            findings[name] = finding
    except queue.Empty:
        pass
    return findings


def make(one: Check, wanted: Wanted) -> Finding:
    """Run one check. If it cannot be made, it is unknown, and says why. A UserError is a failure."""
    try:
        return one(wanted)
    except UserError as error:
        return Finding("failed", str(error), "do what the message says")
    except Exception as error:  # noqa: BLE001  # the others' findings count, whatever happened to this one
        return Finding("unknown", account.why(error))


def _outputs(wanted: Wanted) -> dict[str, str] | AwsError:
    try:
        return wanted.aws.outputs(wanted.installation.storage_stack)
    except AwsError as error:
        return error
