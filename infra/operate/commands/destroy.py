"""`destroy`: stop the machines, delete the training stack, remove what it left, and ask AWS whether anything is left.

Each step can be repeated. After Ctrl-C or a failure, the same command goes on. Without `--purge` the data stays.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from botocore.exceptions import ClientError

from infra.config import Installation, Output
from infra.guard import Guard, GuardSettings
from infra.operate.command_line import CommandLine
from infra.operate.commands.stop import ASK_SECONDS, delete_schedules, empty_groups, wait_until_gone
from infra.operate.installation import leftovers
from infra.operate.installation.left_builds import BUILD
from infra.operate.installation.left_over import LeftOver, stacks_of
from infra.operate.installation.purge import confirm_purge, purge
from infra.operate.installation.stack_states import stack_status
from infra.operate.installation.standing import kept_buckets, kept_data, print_kept
from infra.operate.runs import active_run, open_bucket
from infra.operate.session import Aws, AwsError, ExitCode, explained
from infra.operate.terminal import LiveLine, Text, display, display_commands, next_commands, show_line, styled

HELP = "terminate machines, delete the stack, and check with AWS that nothing is left; keeps the data"
STACK_SECONDS = 1800.0  # a stack of this size is deleted in a few minutes; a VPC with a stuck interface never
SETTLE_SECONDS = 90.0  # AWS may still list a deleted thing for so long
DELETABLE = ("REVIEW_IN_PROGRESS", "CREATE_IN_PROGRESS")  # at once
ASKED = (
    "EC2, EBS, network interfaces, VPC, Auto Scaling, ECR, Logs, Scheduler, EventBridge, Lambda, CloudWatch, "
    "SNS, IAM, CodeBuild, CloudFormation"
)
BOOTSTRAP = (
    "the CDK bootstrap stack (CDKToolkit) is the account's, and stays, with the templates and the guard's code of past "
    "deploys in its bucket"
)


def configure(parser: CommandLine) -> None:
    parser.option("purge", "delete the data, the checkpoints and the token as well", action="store_true")
    parser.option("yes", "with --purge: do not ask", action="store_true")


def run(aws: Aws, installation: Installation, options: argparse.Namespace) -> int:
    show_line(f"destroying {installation.name} in account {aws.account}, {aws.region}")
    if options.purge and not options.yes:
        confirm_purge(aws, installation)
    if run_id := active_run(aws, installation):
        kept = "" if options.purge else "; checkpoints are kept"
        show_line(f"run {run_id} is active: its machine saves and stops{kept}")
    empty_groups(aws, installation)
    wait_until_gone(aws, installation)
    close_tally(aws, installation)
    delete_schedules(aws, installation)
    found = leftovers.find(aws, installation)
    if not found:
        show_line(f"no {installation.training_stack} is deployed here")
    for one in found:
        if one.service in (leftovers.IMAGE, BUILD):  # before the stack, which names the one and hides the other
            remove(one)
        if one.is_foreign:  # said at once: the stack tries for minutes to delete its VPC all the same
            show_line(f"{one.service}: the VPC cannot go before it: {one.command}")
    for name in stacks_of(installation):
        delete_stack(aws, name)
    left = sweep(aws, installation)
    if options.purge:
        purge(aws, installation)
        delete_stack(aws, installation.storage_stack)
        left += leftovers.stack(aws, installation.storage_stack)
    if left:
        display(styled("\nleft over:", "red"))
        display_commands([(one.service, one.id, one.command) for one in left])
        show_line("\nsome of these only take time: run `make destroy` again first, then the commands above")
        return ExitCode.LEFT_OVERS
    display(Text.assemble(("nothing is left", "green"), f", says AWS ({ASKED})"))
    say_kept(aws, installation)
    return ExitCode.DONE


def close_tally(aws: Aws, installation: Installation) -> None:
    """Run the guard once more. The stack takes the guard with it, so only this tick can record the machines' ends."""
    bucket, topic = open_bucket(aws, installation), aws.outputs(installation.training_stack).get(Output.TOPIC)
    if bucket and topic:
        settings = GuardSettings(
            installation=installation.name, bucket=bucket.name, topic=topic, groups=installation.groups
        )
        Guard(aws.client, settings).tick(time.time())  # it says what it could not do; nothing here depends on it


def remove(left: LeftOver) -> None:
    """Delete one thing. If AWS refuses, print why: the next sweep tries again, or the table at the end shows it."""
    if left.delete is None:
        return
    try:
        with explained(f"delete {left.service} {left.id}"):
            left.delete()
    except AwsError as error:
        if not isinstance(error.__cause__, ClientError):
            raise  # the network, not the thing
        show_line(error)
    else:
        show_line(f"deleted: {left.service} {left.id}")


def sweep(aws: Aws, installation: Installation) -> list[LeftOver]:
    """Remove what no stack owns any more, until AWS lists nothing or SETTLE_SECONDS are over. Returns what is left."""
    settled_at = 0.0
    while left := leftovers.find(aws, installation):
        settled_at = settled_at or time.monotonic() + SETTLE_SECONDS
        names = stacks_of(installation)
        owned = {*names} | {part.get("PhysicalResourceId") for name in names for part in resources(aws, name)}
        free = [one for one in left if one.delete and one.id not in owned]
        if not free or time.monotonic() > settled_at:
            break
        for one in free:
            remove(one)
        time.sleep(ASK_SECONDS)
    return left


def delete_stack(aws: Aws, name: str) -> None:
    """Delete a stack, even one that is half made or half deleted. It lets go of a resource that it cannot delete."""
    cloudformation = aws.client("cloudformation")
    with explained(f"delete the stack {name}"):
        for attempt in range(3):
            if not (status := wait_for_stack(aws, name)):
                return
            failed = [r for r in resources(aws, name) if r["ResourceStatus"] == "DELETE_FAILED"] if attempt else []
            for resource in failed:
                show_line(
                    f"the stack cannot delete {resource['ResourceType']} {resource.get('PhysicalResourceId', '')} "
                    f"({resource.get('ResourceStatusReason', 'no reason given')}): it is swept below"
                )
            show_line(f"deleting the stack {name} ({status})")
            retain = {"RetainResources": [resource["LogicalResourceId"] for resource in failed]} if failed else {}
            cloudformation.delete_stack(StackName=name, **retain)
        wait_for_stack(aws, name)


def resources(aws: Aws, name: str) -> list[dict[str, Any]]:
    """The resources of a stack. Returns [] if there is no such stack."""
    if not stack_status(aws, name):
        return []
    pages = aws.client("cloudformation").get_paginator("list_stack_resources").paginate(StackName=name)
    return [resource for page in pages for resource in page["StackResourceSummaries"]]


def wait_for_stack(aws: Aws, name: str) -> str:
    """Show what the stack does until it rests. Returns its status then, or "" if it is gone."""
    began = time.monotonic()
    with LiveLine() as live:
        while (status := stack_status(aws, name)).endswith("_IN_PROGRESS") and status not in DELETABLE:
            parts = resources(aws, name)
            going = [part for part in parts if part["ResourceStatus"] != "DELETE_COMPLETE"]
            waits_for = next(
                (part["ResourceType"] for part in going if part["ResourceStatus"].endswith("_IN_PROGRESS")), ""
            )
            live.show(f"{name}: {status}, {len(going)} of {len(parts)} resources {waits_for}".rstrip())
            if time.monotonic() > began + STACK_SECONDS:
                raise AwsError(
                    f"the stack {name} is {status} for {STACK_SECONDS / 60:.0f} min: see its events in the "
                    "CloudFormation console, then `make destroy` again"
                )
            time.sleep(ASK_SECONDS)
    return status


def say_kept(aws: Aws, installation: Installation) -> None:
    buckets = kept_buckets(aws, installation)
    if not buckets:
        show_line("no data is kept either")
        show_line(BOOTSTRAP)
        return
    show_line("\nkept, and adopted by the next `make deploy`:")
    for bucket in buckets:
        print_kept(kept_data(bucket, installation))
    show_line(BOOTSTRAP)
    next_commands(("make deploy", "train again"), ("make pull", "copy results here"),
                  ("make destroy PURGE=1", "delete the data as well"))  # fmt: skip
