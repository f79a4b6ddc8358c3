"""Somebody at a terminal whose credentials are those of a role with one policy."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest

from infra import __main__ as program
from infra.operate.installation import building
from infra.operate.rights.right import Right
from infra.operate.session import Aws as Operator
from infra.operate.session import AwsError
from infra.run import fleet
from tests.emulator.aws import Aws
from tests.emulator.policies import Request, applies
from tests.emulator.registry import Registry
from tests.infra import deployed
from tests.infra.deployed import INSTALLATION, REPOSITORY, Deployed, client
from tests.infra.operator import prepare_account, put_token, stand_in_for_cdk

ROLE = "operator"
KEYS = {"AWS_ACCESS_KEY_ID": "AccessKeyId", "AWS_SECRET_ACCESS_KEY": "SecretAccessKey",
        "AWS_SESSION_TOKEN": "SessionToken"}  # fmt: skip


class OpenedError(Exception):
    """This process would be the shell now."""


def granted(aws: Aws, *policies: Mapping[str, Any]) -> dict[str, str]:
    """The environment of somebody who has a role with these policies and no other."""
    iam = client(aws, "iam")
    trust = {"Statement": {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"AWS": aws.account}}}
    iam.create_role(RoleName=ROLE, AssumeRolePolicyDocument=json.dumps(trust))
    for number, policy in enumerate(policies):
        iam.put_role_policy(RoleName=ROLE, PolicyName=f"{ROLE}-{number}", PolicyDocument=json.dumps(policy))
    arn = f"arn:aws:iam::{aws.account}:role/{ROLE}"
    keys = client(aws, "sts").assume_role(RoleArn=arn, RoleSessionName="me")["Credentials"]
    return {name: str(keys[key]) for name, key in KEYS.items()}


def asked_by_role(aws: Aws) -> list[dict[str, Any]]:
    """What the role has asked IAM. Nothing may be refused, not even what a command gets over."""
    asked = [one for one in aws.asked() if one["role"].endswith(f":role/{ROLE}")]
    if refused := [one for one in asked if one["refused"]]:
        pytest.fail(f"refused: {refused}")
    return asked


def unasked(rights: Sequence[Right], asked: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """What the rights allow, an action on a resource, and nobody has asked for."""
    requests = [Request(one["action"], one["resource"], one["context"]) for one in asked]

    def is_asked(right: Right, action: str, resource: str) -> bool:
        allowed = {"Action": action, "Resource": resource, "Condition": right.condition or {}}
        return any(applies(allowed, request) for request in requests)

    return [
        (action, resource)
        for right in rights for action in right.actions for resource in right.on
        if not is_asked(right, action, resource)
    ]  # fmt: skip


@dataclass(frozen=True)
class Desk:
    aws: Aws
    registry: Registry
    monkeypatch: pytest.MonkeyPatch
    folder: Path

    def sit_down(self, policy: Mapping[str, Any]) -> None:
        """From now on, this process has the credentials of a role with this policy and no other."""
        for name, value in granted(self.aws, policy).items():
            self.monkeypatch.setenv(name, value)
        self.aws.set(registry=self.registry.host)

    def run(self, *arguments: str, code: int = 0, stdin: str = "") -> None:
        """`python -m infra …` in this process."""
        (typed := self.folder / "typed").write_text(stdin)
        with typed.open() as stream:
            self.monkeypatch.setattr(sys, "stdin", stream)
            self.monkeypatch.setattr(sys, "argv", ["infra", *arguments])
            assert program.main() == code, arguments

    def operator(self) -> Operator:
        return Operator(boto3.Session())

    def open_shell(self) -> None:
        """The programs `aws` and `session-manager-plugin` ask for this; no machine is behind it."""

        def opened(file: str, words: list[str]) -> None:
            session = boto3.Session()  # not the default one, which keeps the role of an earlier test
            ssm, own = session.client("ssm"), session.client("sts").get_caller_identity()["UserId"]
            ssm.start_session(Target=words[words.index("--target") + 1])
            ssm.resume_session(SessionId=f"{own}-0a1b2c3d")
            ssm.terminate_session(SessionId=f"{own}-0a1b2c3d")
            raise OpenedError

        self.install("aws", "session-manager-plugin")
        self.monkeypatch.setattr(os, "execvp", opened)
        with pytest.raises(OpenedError):
            self.run("shell")

    def ready(self) -> Deployed:
        """The account, deployed, with everything that a launch needs."""
        prepare_account(self.aws)
        account = deployed.deploy(self.aws)
        put_token(self.aws)
        return account

    def bootstrap(self) -> None:
        """What `cdk bootstrap` makes for a `cdk deploy`: its bucket, and roles that trust the account."""
        place = f"{self.aws.account}-{self.aws.region}"
        trusted = {"AWS": f"arn:aws:iam::{self.aws.account}:root"}
        trust = {"Statement": {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": trusted}}
        for name in ("deploy", "file-publishing", "image-publishing", "lookup", "cfn-exec"):
            client(self.aws, "iam").create_role(
                RoleName=f"cdk-hnb659fds-{name}-role-{place}", AssumeRolePolicyDocument=json.dumps(trust)
            )
        client(self.aws, "s3").create_bucket(Bucket=f"cdk-hnb659fds-assets-{place}")
        client(self.aws, "ecr").create_repository(repositoryName=REPOSITORY)
        prepare_account(self.aws)

    def install(self, *programs: str) -> None:
        """Programs that do nothing, before all others; Docker's tells its version."""
        for name in programs:
            (self.folder / name).write_text("#!/bin/sh\necho 29.0 amd64\n")
            (self.folder / name).chmod(0o755)
        self.monkeypatch.setenv("PATH", f"{self.folder}:{os.environ['PATH']}")

    def stand_in_for_cdk(self, *, deploys: bool) -> None:
        stand_in_for_cdk(self.folder, self.monkeypatch, deploys=deploys)

    def roll_back(self, *_: object) -> None:
        """In place of CDK: the storage stack did not come up."""
        self.aws.set(stack_status={INSTALLATION.storage_stack: "ROLLBACK_COMPLETE"})
        raise AwsError("cdk deploy ended with 1")

    def press_ctrl_c(self) -> None:
        """At the next moment in which a build is waited for."""

        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        self.monkeypatch.setattr(building, "follow_build", interrupted)

    def network(self) -> tuple[str, ...]:
        """The settings that name a VPC of one's own."""
        subnet = client(self.aws, "ec2").describe_subnets()["Subnets"][0]
        return ("-c", f"vpc_id={subnet['VpcId']}", "-c", f"subnet_ids={subnet['SubnetId']}")

    def suspend_groups(self) -> None:
        """As AWS does with a group that has found no machine for a day."""
        for group in INSTALLATION.groups:
            client(self.aws, "autoscaling").suspend_processes(AutoScalingGroupName=group, ScalingProcesses=["Launch"])

    def raise_minimum(self) -> None:
        """Somebody wants a machine in each group, whatever happens."""
        for group in INSTALLATION.groups:
            client(self.aws, "autoscaling").update_auto_scaling_group(AutoScalingGroupName=group, MinSize=1)

    def empty_groups(self) -> None:
        for group in INSTALLATION.groups:
            fleet.scale_to_zero(client(self.aws, "autoscaling"), group)
