"""The principals of an installation as the simulator knows them: their own statements, with names of the tests."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from infra.boot.handover import session_policy
from infra.config import Installation
from infra.stacks import permissions
from infra.stacks.permissions import Arns, Statement
from tests.emulator.policies import Caller, Document, parse

INSTALLATION = Installation()
ACCOUNT, REGION = "123456789012", "us-east-1"
BUCKET = "bucket"
RUN, OTHER = "rn50-1", "rn50-2"
PREPARATION = "prepare-1"
DATA = f"s3://{BUCKET}/datasets/imagenet/256px"
ROLES: dict[str, Callable[[Arns], list[Statement]]] = {
    "train-machine": permissions.training_machine,
    "train-run": permissions.training_run,
    "prepare-machine": permissions.preparing_machine,
    "prepare-run": permissions.preparing_run,
    "guard": permissions.guard,
    "scheduler": permissions.scheduler,
}


def arns(bucket: str = BUCKET) -> Arns:
    logs = f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:"
    return Arns(
        installation=INSTALLATION,
        partition="aws",
        region=REGION,
        account=ACCOUNT,
        bucket=f"arn:aws:s3:::{bucket}",
        secret=f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:{INSTALLATION.secret_name}-??????",
        run_logs=f"{logs}{INSTALLATION.log_group}:*",
        guard_logs=f"{logs}/aws/lambda/{INSTALLATION.guard_function}:*",
        topic=f"arn:aws:sns:{REGION}:{ACCOUNT}:topic",
        repository=f"arn:aws:ecr:{REGION}:{ACCOUNT}:repository/trainer",
    )


def role_arn(name: str) -> str:
    return f"arn:aws:iam::{ACCOUNT}:role/{name}"


def document(name: str, bucket: str = BUCKET) -> Document:
    """All that a role's policies say."""
    statements = ROLES[name](arns(bucket))
    if name.endswith("-machine"):
        statements.append(permissions.taking_on(role_arn(name.replace("machine", "run"))))
    return {"Version": "2012-10-17", "Statement": as_json(statements)}


def as_json(statements: Sequence[Statement]) -> list[dict[str, Any]]:
    return [
        {"Effect": one.effect, "Action": [*one.actions], "Resource": [*one.on]}
        | ({"Condition": one.condition} if one.condition else {})
        for one in statements
    ]


def trust(name: str) -> Document:
    """Who may take on the role. tests/infra/stacks/test_roles.py compares this with the template."""
    principal = {"AWS": role_arn(name.replace("run", "machine"))} if name.endswith("-run") else {"Service": "aws"}
    return {"Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": principal}]}


def caller(name: str) -> Caller:
    """A role, or "train-container" and "prepare-container": the run's role with the session policy that boot gives."""
    kind, _, part = name.partition("-")
    if part != "container":
        return Caller(role_arn(name), [document(name)])
    run, data = (PREPARATION, "ILSVRC/imagenet-1k") if kind == "prepare" else (RUN, DATA)
    session = parse(session_policy(kind, BUCKET, run, data, []))
    return Caller(role_arn(f"{kind}-run"), [document(f"{kind}-run")], session)


def put_role(iam: Any, name: str, bucket: str = BUCKET) -> str:
    """Make the role in an emulated account, if it is not there; its ARN."""
    with contextlib.suppress(iam.exceptions.EntityAlreadyExistsException):
        iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(trust(name)))
    iam.put_role_policy(RoleName=name, PolicyName=name, PolicyDocument=json.dumps(document(name, bucket)))
    return role_arn(name)
