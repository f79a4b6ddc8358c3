"""`deploy`: run preflight, build the image, deploy the stacks with the pinned CDK, delete older images, and launch.

Every step can be repeated. After Ctrl-C or a failure, the same command goes on.
"""

from __future__ import annotations

import argparse

from botocore.exceptions import ClientError

from infra.config import Installation, Output
from infra.operate.checks.finding import Wanted
from infra.operate.checks.network import public_access
from infra.operate.command_line import CommandLine
from infra.operate.commands.destroy import delete_stack
from infra.operate.commands.launch import launch
from infra.operate.commands.preflight import build_option, preflight
from infra.operate.installation import building, cdk, leftovers
from infra.operate.installation.engine import IN_ACCOUNT, find_engine, place_of_build
from infra.operate.installation.offers import offered_here
from infra.operate.installation.stack_states import DEAD, stack_status
from infra.operate.installation.versions import keep_versions
from infra.operate.planning import options
from infra.operate.planning.offering import leave_placement_groups
from infra.operate.runs import open_bucket
from infra.operate.session import Aws, ExitCode, explained
from infra.operate.terminal import display, display_commands, next_commands, show_line, styled

HELP = "check, deploy both stacks, and launch a run"


def configure(parser: CommandLine) -> None:
    parser.option("no-launch", "deploy only; nothing bills then", dest="launches", action="store_false")
    build_option(parser)
    options.configure(parser)


def run(aws: Aws, installation: Installation, given: argparse.Namespace) -> int:
    request = options.request_of(given)
    if not preflight(aws, installation, request, None, deploys=True, build=given.build):
        return ExitCode.PREFLIGHT
    deploy_stacks(aws, installation, given.build)
    if given.launches:
        blocked = public_access(Wanted(aws=aws, installation=installation, request=request))  # the VPC may be new
        if blocked.state == "failed":
            display(styled(f"not launched, for want of public access: {blocked.said}", "red"))
            display_commands([("then `make launch`", blocked.fix)])
            return ExitCode.PREFLIGHT
        show_line("")
        return launch(aws, installation, request, is_checked=True)
    next_commands(
        ("make launch", "start a run"),
        ("make prepare ON=aws", "put ImageNet into the bucket, once"),
        ("make destroy", "remove it again; the data stays"),
    )
    return ExitCode.DONE


def deploy_stacks(aws: Aws, installation: Installation, build: str = "") -> None:
    """`build` is BUILD=, or ""."""
    for name in (installation.training_stack, installation.builder_stack, installation.storage_stack):
        with explained(f"the stack {name}"):
            status = stack_status(aws, name)
        if status in DEAD:
            show_line(f"{name} is in {status}, from a deploy that failed: it is deleted first")
            delete_stack(aws, name)
    offered = offered_here(aws, installation)
    if offered.trouble:
        raise offered.trouble
    if line := offered.line(aws.region):
        show_line(line)
    if not installation.image_uri and place_of_build(build, find_engine()) == IN_ACCOUNT:
        building.build_image(aws, offered.installation)  # before the training stack, whose machines pull it
    try:
        leave_placement_groups(aws.client("autoscaling"), installation.groups_of("train"))
    except ClientError as error:  # AWS may ask for the rights of a launch. Most deploys do not touch the groups
        show_line(f"note: the groups stay in the placement group of the last run of several machines: {error}")
    cdk.deploy(aws, offered.installation, installation.storage_stack, installation.training_stack)
    if bucket := open_bucket(aws, installation):
        keep_versions(bucket)
    display(styled(f"deployed: {installation.storage_stack}, {installation.training_stack}", "green"))
    prune_images(aws, installation, aws.outputs(installation.training_stack).get(Output.IMAGE, ""))


def prune_images(aws: Aws, installation: Installation, current: str) -> None:
    """Delete the images of all earlier deploys, including deploys that failed or were stopped."""
    with explained("delete the images of earlier deploys"):
        for image in list(leftovers.images(aws, installation)):
            if not current.endswith(f"/{image.id}") and image.delete:
                image.delete()
                show_line(f"deleted the image of an earlier deploy, {image.id}")
