"""The builder stack: what CodeBuild builds is what the training stack runs, within limits, and with few permissions."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from infra.config import MOST_BUILD_MINUTES, Output
from infra.stacks.builder import BUILD_COMMANDS
from infra.stacks.image import commit
from tests import ROOT
from tests.infra.synthesized import VARIANTS, Stack, flat, stacks

pytestmark = pytest.mark.slow  # CDK runs in Node.js
BUCKET = "cdk-hnb659fds-assets-${AWS::AccountId}-${AWS::Region}"


def builder() -> Stack:
    found = stacks().builder
    assert found is not None
    return found


def test_what_is_built_is_the_image_of_the_training_stack() -> None:
    variables = builder().one("CodeBuild::Project")["Environment"]["EnvironmentVariables"]
    given = {one["Name"]: one["Value"] for one in variables}
    image = stacks().training.template["Outputs"][Output.IMAGE]["Value"]
    assert given["IMAGE"] == image == builder().template["Outputs"][Output.IMAGE]["Value"]
    assert re.search(r":resnet-spot-[0-9a-f]{64}$", flat(image))
    assert given["COMMIT"] == commit()


def test_a_build_ends_by_itself_and_runs_on_the_architecture_of_the_machines() -> None:
    project = builder().one("CodeBuild::Project")
    assert (project["TimeoutInMinutes"], project["QueuedTimeoutInMinutes"]) == (MOST_BUILD_MINUTES, 30)
    assert project["Environment"]["Type"] == "LINUX_CONTAINER"  # x86-64; ARM_CONTAINER is the other
    (build,) = [one for one in BUILD_COMMANDS if one.startswith("docker build")]
    assert "--platform linux/amd64" in build


def test_all_commands_are_in_one_phase_since_a_later_one_would_run_after_a_failure() -> None:
    specification = json.loads(builder().one("CodeBuild::Project")["Source"]["BuildSpec"])
    assert {name: [*phase] for name, phase in specification["phases"].items()} == {"build": ["commands"]}


def test_the_role_reads_its_source_writes_its_log_pushes_and_may_do_nothing_else() -> None:
    role, source = builder().one("IAM::Role"), builder().one("CodeBuild::Project")["Source"]
    assert flat(role["AssumeRolePolicyDocument"]["Statement"]) == [
        {"Action": "sts:AssumeRole", "Effect": "Allow", "Principal": {"Service": "codebuild.amazonaws.com"}}
    ]
    (policy,) = role["Policies"]
    said = [(one["Effect"], one["Action"], flat(one["Resource"])) for one in policy["PolicyDocument"]["Statement"]]
    arn, account = "arn:<AWS::Partition>:{}", "<AWS::Region>:<AWS::AccountId>"
    assert flat(source["Location"]).startswith(f"{BUCKET}/resnet-spot/")
    assert said == [
        ("Allow", ["s3:GetObject", "s3:GetObjectVersion"], arn.format(f"s3:::{flat(source['Location'])}")),
        ("Allow", ["s3:GetBucketAcl", "s3:GetBucketLocation"], arn.format(f"s3:::{BUCKET}")),
        (
            "Allow",
            [
                "ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:CompleteLayerUpload",
                "ecr:InitiateLayerUpload", "ecr:PutImage", "ecr:UploadLayerPart",
            ],
            arn.format(f"ecr:{account}:repository/") + BUCKET.replace("assets", "container-assets"),
        ),
        ("Allow", "ecr:GetAuthorizationToken", "*"),
        ("Allow", ["logs:CreateLogStream", "logs:PutLogEvents"], "<Logs.Arn>"),
    ]  # fmt: skip
    assert "ManagedPolicyArns" not in role


def test_nothing_of_it_bills_while_nothing_builds_or_stays_when_it_is_deleted() -> None:
    resources = builder().template["Resources"].values()
    assert {one["Type"] for one in resources} == {"AWS::CodeBuild::Project", "AWS::IAM::Role", "AWS::Logs::LogGroup"}
    assert {one.get("DeletionPolicy", "Delete") for one in resources} == {"Delete"}


@pytest.mark.parametrize("variant", [name for name, given in VARIANTS.items() if "image_uri" in given])
def test_who_gives_an_image_has_no_builder(variant: str) -> None:
    assert stacks(variant).builder is None


@pytest.mark.parametrize("mirror", [True, False])
def test_the_base_is_the_one_of_the_dockerfile_from_a_mirror_that_has_it(mirror: bool, tmp_path: Path) -> None:
    """Docker Hub limits what an address may pull, and CodeBuild's addresses are shared."""
    (tmp_path / "docker").write_text(f'#!/bin/sh\n[ "$1" = manifest ] && exit {int(not mirror)}\nprintf "%s\\n" "$@"\n')
    (tmp_path / "docker").chmod(0o755)
    said = subprocess.run(
        ["bash", "-ec", "\n".join(BUILD_COMMANDS[1:])], cwd=ROOT, capture_output=True, text=True, check=True,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "IMAGE": "registry/image:tag", "COMMIT": "c0ffee"},
    ).stdout.splitlines()  # fmt: skip
    (base,) = re.findall(r"^ARG BASE=(.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert f"BASE={'public.ecr.aws/docker/library/' * mirror}{base}" in said
    assert said[-2:] == ["push", "registry/image:tag"]
