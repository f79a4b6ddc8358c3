"""`make rehearse` of a checkout, against the emulated account, with machines that boot and trainers that train: it sees
what it asks for, and nothing of it is left.

The machines are those of cloud.py, which says what of them is a stand-in. So these stay unproven here: a GPU, spot
capacity and reclaims, the machine image, how long a pull takes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from infra.config import Installation
from infra.operate.commands.policy import rights_by
from infra.operate.rehearsal.questions import UNTRIED
from infra.operate.rights.rehearsing import rehearsing
from infra.operate.rights.right import Names, managed_policies
from infra.operate.rights.sweeping import closing_the_tally, deleting
from tests.emulator.aws import Aws
from tests.emulator.inventory import inventory
from tests.emulator.registry import Registry
from tests.infra.checkout import Checkout, make_checkout, prepare_the_account
from tests.infra.operate.desk import asked_by_role, granted, unasked
from tests.infra.rehearsal.cloud import Cloud
from tests.infra.rehearsal.machine_files import IMAGE

SEEN = {"iam", "cpu", "spot", "boot", "resume", "bits", "logs", "guard"}

# Beside what destroy needs for what a stack leaves, and a notice (test_rehearsal_notice.py): the states in which the
# commands ask these are in the scenarios of test_policy.py.
RARE = {
    "autoscaling:DescribeScalingActivities",  # no machine comes
    "autoscaling:UpdateAutoScalingGroup",  # of the on-demand group
    "cloudformation:DescribeStackEvents",  # a deploy rolls back
    "codebuild:BatchGetBuilds", "codebuild:ListBuildsForProject", "codebuild:StartBuild", "codebuild:StopBuild",
    "cloudformation:ListStackResources",  # of the builder
    "ecr:DescribeImages",
    "ec2:DescribeVpcBlockPublicAccessExclusions",  # the account blocks public access
    "freetier:GetAccountPlanState", "servicequotas:GetAWSDefaultServiceQuota",  # it has no quota
    "logs:GetLogEvents",  # CodeBuild builds
    "s3:AbortMultipartUpload", "s3:GetObject",  # a half upload, a checkpoint without its HEAD.json
    "secretsmanager:GetSecretValue",  # an earlier rehearsal left its secret
}  # fmt: skip
SOMETIMES = {"scheduler:DeleteSchedule"}  # where a run ends before its schedule is gone, or is interrupted
# What takes half a minute each time where a machine costs money. A save still comes after the rows of some steps.
SHORTER = (
    ("infra/operate/rehearsal/scope.py", "SAVE_EVERY_SECONDS = 40\n", "SAVE_EVERY_SECONDS = 20\n"),
    ("trainer/telemetry/metrics.py", "SHIP_SECONDS = 30\n", "SHIP_SECONDS = 6\n"),
)
NAMES_AN_ACCOUNT = re.compile(r"(?<![\d.])\d{12}(?!\d)|arn:|amazonaws|\d+\.\d+\.\d+\.\d|127\.|@")


@pytest.fixture
def checkout(aws: Aws, registry: Registry, engine: docker.DockerClient, tmp_path: Path) -> Iterator[Checkout]:
    with make_checkout(aws, registry, engine, tmp_path, IMAGE) as found:
        for name, long, short in SHORTER:
            text = (found.folder / name).read_text()
            assert text.count(long) == 1
            (found.folder / name).write_text(text.replace(long, short))
        yield found


@pytest.fixture
def cloud(
    aws: Aws, registry: Registry, engine: docker.DockerClient, machine_image: str, tmp_path: Path
) -> Iterator[Cloud]:
    found = Cloud(aws, engine, registry.host, tmp_path)
    yield found
    found.stop()


@pytest.mark.engine
def test_a_rehearsal_sees_a_run_lose_its_machine_and_go_on_with_the_same_bits_and_leaves_nothing(
    aws: Aws, checkout: Checkout, cloud: Cloud, tmp_path: Path
) -> None:
    prepare_the_account(aws, checkout)
    names = Names(installation=Installation(), account=aws.account, region=aws.region)
    rights = rights_by(names, ["rehearse"])
    checkout.environ.update(granted(aws, *managed_policies(rights)))
    before = inventory(aws)
    aws.clear_calls()
    said = checkout.make("rehearse", "YES=1", timeout=900)
    assert inventory(aws) == before, said
    text = (checkout.folder / "rehearsal.json").read_text()
    assert not NAMES_AN_ACCOUNT.search(text), text
    report: dict[str, Any] = json.loads(text)
    assert (report["good"], report["whole"], report["left"]) == (True, True, []), text
    seen = {one["question"] for one in report["answers"] if one["seen"]}
    assert seen == {UNTRIED[name] for name in SEEN}, text
    assert cloud.troubles == []
    assert len(cloud.machines) == 3, sorted(cloud.machines)
    assert 0 < report["usd"] < report["most_usd"] <= 0.5
    for_other_states = [*deleting(names), *closing_the_tally(names), *rehearsing(names)]
    known = {action for right in for_other_states for action in right.actions}
    assert {action for action, _ in unasked(rights, asked_by_role(aws))} - known - SOMETIMES == RARE
