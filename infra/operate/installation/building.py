"""The image's build in the account: the builder stack, then one build of CodeBuild, followed to its end.

A tag names the content, as CDK's own do. So a tag that is in the registry is not built again, and CDK does not miss an
engine when it deploys the training stack.
"""

from __future__ import annotations

import time
from typing import Any

import botocore.exceptions

from infra.config import MOST_BUILD_MINUTES, Installation, Output
from infra.operate.installation import cdk
from infra.operate.session import Aws, AwsError, explained
from infra.operate.terminal import display_line, show_line
from infra.operate.text import usd

BUILD_LOOK_SECONDS = 5.0
LAST_LINES_SECONDS = 15.0  # for so long after its end, lines of a build may still come
USUAL_MINUTES = 12  # 3.3 GB in, unpacked, packed and pushed again with two vCPUs; an estimate, not a measurement
USD_PER_MINUTE = 0.005  # general1.small, Linux, us-east-1: aws.amazon.com/codebuild/pricing, in March 2026
QUOTA = "L-9D07B6EF"  # "Concurrently running builds for Linux/Small environment"
RAISE_QUOTA = (
    f"aws service-quotas request-service-quota-increase --service-code codebuild --quota-code {QUOTA} --desired-value 1"
)
LOG_LETTERS = 2000  # of a line of the log
PRICE = f"about {USUAL_MINUTES} min and {usd(USUAL_MINUTES * USD_PER_MINUTE)}"
MOST_PRICE = f"at most {MOST_BUILD_MINUTES} min and {usd(MOST_BUILD_MINUTES * USD_PER_MINUTE)}"


def build_image(aws: Aws, installation: Installation) -> None:
    """Bring the image of this checkout into the registry. Raises AwsError, with what CodeBuild said, if it fails."""
    cdk.deploy(aws, installation, installation.builder_stack)
    image = aws.outputs(installation.builder_stack)[Output.IMAGE]
    if is_in_registry(aws, image):
        show_line("the registry has the image of this code: nothing is built")
        return
    if running := running_build(aws, installation, image):
        show_line(f"a build of this code runs already ({running}): this command waits for it")
        follow_build(aws, running)
    else:
        show_line(f"CodeBuild builds the image: {PRICE}; {MOST_PRICE}")
        follow_our_own(aws, start_build(aws, installation))
    if not is_in_registry(aws, image):
        raise AwsError(f"the build succeeded, and the registry has no {image}; `make deploy` builds again")


def is_in_registry(aws: Aws, image: str) -> bool:
    repository, _, tag = image.partition("/")[2].rpartition(":")
    ecr = aws.client("ecr")
    with explained(f"the image {image}"):
        try:
            ecr.describe_images(repositoryName=repository, imageIds=[{"imageTag": tag}])
        except ecr.exceptions.ImageNotFoundException:
            return False
    return True


def running_build(aws: Aws, installation: Installation, image: str) -> str:
    """The id of a build of this image that another deploy has begun. "" if there is none."""
    codebuild = aws.client("codebuild")
    with explained("the builds that run"):
        ids = codebuild.list_builds_for_project(projectName=installation.build_project)["ids"]
        builds = codebuild.batch_get_builds(ids=ids)["builds"] if ids else []
    for build in builds:
        values = {one["name"]: one["value"] for one in build["environment"]["environmentVariables"]}
        if build["buildStatus"] == "IN_PROGRESS" and values.get("IMAGE") == image:
            return str(build["id"])
    return ""


def start_build(aws: Aws, installation: Installation) -> str:
    """The id of the build. Raises AwsError if the account may run none."""
    with explained("start the build of the image"):
        try:
            started = aws.client("codebuild").start_build(projectName=installation.build_project)
        except botocore.exceptions.ClientError as error:
            if error.response["Error"].get("Code") != "AccountLimitExceededException":
                raise
            raise AwsError(
                f"this account may run no build ({error.response['Error'].get('Message', '')}): new accounts begin so. "
                f"Ask AWS for one (`{RAISE_QUOTA}`), or build with a Docker engine: make deploy BUILD=local"
            ) from error
    return str(started["build"]["id"])


def follow_our_own(aws: Aws, id: str) -> None:
    try:
        follow_build(aws, id)
    except KeyboardInterrupt:
        with explained("stop the build"):
            aws.client("codebuild").stop_build(id=id)
        show_line("the build is stopped")
        raise


def follow_build(aws: Aws, id: str) -> None:
    """Show the build's phases and log until it ends. Raises AwsError if it did not succeed."""
    log, said = Log(aws), ""
    while True:
        build = describe_build(aws, id)
        log.show(build)
        if build["buildStatus"] != "IN_PROGRESS":
            break
        minutes = int((time.time() - build["startTime"].timestamp()) / 60)
        now = f"{build['currentPhase'].lower().replace('_', ' ')}, {minutes} min, {usd(minutes * USD_PER_MINUTE)}"
        if now != said:
            show_line(f"the image's build: {now}")
            said = now
        time.sleep(BUILD_LOOK_SECONDS)
    if build["buildStatus"] == "SUCCEEDED":
        return
    deadline = time.monotonic() + LAST_LINES_SECONDS
    while log.show(build) or time.monotonic() < deadline:
        time.sleep(min(1.0, LAST_LINES_SECONDS))
    raise AwsError(failure(build))


def describe_build(aws: Aws, id: str) -> dict[str, Any]:
    with explained(f"the build {id}"):
        return dict(aws.client("codebuild").batch_get_builds(ids=[id])["builds"][0])


class Log:
    """The lines of a build, each shown once. CodeBuild names their place when the build has begun."""

    def __init__(self, aws: Aws) -> None:
        self.aws, self.token = aws, ""

    def show(self, build: dict[str, Any]) -> bool:
        """Show the lines that are new. Returns whether there were any."""
        place = build.get("logs", {})
        if not place.get("streamName"):
            return False
        logs, was_any = self.aws.client("logs"), False
        while True:
            after = {"nextToken": self.token} if self.token else {}
            with explained("the build's log"):
                try:
                    page = logs.get_log_events(
                        logGroupName=place["groupName"], logStreamName=place["streamName"], startFromHead=True, **after
                    )
                except logs.exceptions.ResourceNotFoundException:  # before the first line
                    return False
            self.token = page["nextForwardToken"]
            for event in page["events"]:
                display_line("  ", event["message"].rstrip("\n"), LOG_LETTERS)
            if not page["events"]:
                return was_any
            was_any = True


def failure(build: dict[str, Any]) -> str:
    """What CodeBuild says of a build that did not succeed, and what to do."""
    status = build["buildStatus"]
    reasons = [
        f"{phase['phaseType'].lower()}: {context['message']}"
        for phase in build.get("phases", [])
        for context in phase.get("contexts", [])
        if context.get("message")
    ]
    what = {
        "TIMED_OUT": f"took longer than {MOST_BUILD_MINUTES} min and was ended",
        "STOPPED": "was stopped",
    }.get(status, "failed")
    why = f" ({'; '.join(reasons)})" if reasons else ""
    return (
        f"the image's build {what}{why}; its last lines are above. `make deploy` builds again; with a Docker engine, "
        "`make deploy BUILD=local` builds on this machine"
    )
