"""What each principal can do, by the statements of its role and its session policy: one row a question.

The statements are the same as in the templates (stacks/test_roles.py), and the session policies are boot's own.
"""

from __future__ import annotations

import pytest

from tests.emulator.policies import Request
from tests.emulator.principals import ACCOUNT, INSTALLATION, REGION, arns, caller, role_arn, trust

TRAINER, PREPARER = "train-container", "prepare-container"
MACHINE, PREPARING = "train-machine", "prepare-machine"
GUARD, SCHEDULER = "guard", "scheduler"
EVERYONE = {TRAINER, PREPARER, MACHINE, PREPARING, GUARD, SCHEDULER}
NOBODY: set[str] = set()
NEW = {"s3:if-none-match": "*", "s3:ObjectCreationOperation": "true"}
OVER = {"s3:ObjectCreationOperation": "true"}
PART = {"s3:ObjectCreationOperation": "false"}
DATASET, SIBLING = "datasets/imagenet/256px", "datasets/imagenet/256px-2"

READ = {
    "runs/rn50-1/spec.json": {TRAINER, MACHINE, GUARD},
    "runs/rn50-1/spend.json": {TRAINER, GUARD},
    "runs/rn50-1/failed.json": {TRAINER, MACHINE, GUARD},
    "runs/rn50-1/metrics/1/0.jsonl": {TRAINER, GUARD},
    "runs/rn50-10/spec.json": {MACHINE, GUARD},
    "runs/rn50-2/metrics/1/0.jsonl": {GUARD},
    "runs/prepare-1/spec.json": {PREPARER, MACHINE, PREPARING, GUARD},
    "runs/prepare-1/heartbeat.json": {PREPARER, GUARD},
    "runs/prepare-10/heartbeat.json": {GUARD},
    "checkpoints/rn50-1/HEAD.json": {TRAINER, MACHINE, GUARD},
    "checkpoints/rn50-1/data/step-1.1.safetensors": {TRAINER},
    "checkpoints/rn50-2/HEAD.json": {MACHINE, GUARD},
    "checkpoints/rn50-2/data/step-1.1.safetensors": NOBODY,
    "checkpoints/rn50-10/data/step-1.1.safetensors": NOBODY,
    f"{DATASET}/index.json": {TRAINER, PREPARER},
    f"{SIBLING}/index.json": {PREPARER},
    "else": NOBODY,
}
WRITE = {  # over what is there
    "runs/rn50-1/spec.json": NOBODY,
    "runs/rn50-1/spend.json": {GUARD},
    "runs/rn50-1/guard.json": {GUARD},
    "runs/rn50-1/result.json": {TRAINER},
    "runs/rn50-1/metrics/1/0.jsonl": {TRAINER},
    "runs/rn50-1/failed.json": {TRAINER, MACHINE},
    "runs/rn50-10/result.json": NOBODY,
    "runs/rn50-2/spec.json": NOBODY,
    "runs/rn50-2/spend.json": {GUARD},
    "runs/rn50-2/result.json": NOBODY,
    "runs/rn50-2/failed.json": {MACHINE},
    "runs/prepare-1/spec.json": NOBODY,
    "runs/prepare-1/spend.json": {GUARD},
    "runs/prepare-1/heartbeat.json": {PREPARER},
    "runs/prepare-1/failed.json": {PREPARER, MACHINE, PREPARING},
    "runs/prepare-10/heartbeat.json": NOBODY,
    "checkpoints/rn50-1/HEAD.json": {TRAINER},
    "checkpoints/rn50-1/data/step-1.1.safetensors": {TRAINER},
    "checkpoints/rn50-2/HEAD.json": NOBODY,
    "checkpoints/rn50-10/data/step-1.1.safetensors": NOBODY,
    f"{DATASET}/index.json": NOBODY,
    f"{DATASET}/train-256px-00000.arrow": NOBODY,
    "else": NOBODY,
}
LIST = {
    "runs/rn50-1/": {TRAINER, MACHINE, GUARD},
    "runs/rn50-10/": {MACHINE, GUARD},
    "runs/prepare-1/": {PREPARER, MACHINE, PREPARING, GUARD},
    "runs/": {MACHINE, GUARD},
    "checkpoints/rn50-1/": {TRAINER, MACHINE, GUARD},
    "checkpoints/rn50-2/": {MACHINE, GUARD},
    f"{DATASET}/": {TRAINER, PREPARER},
    "datasets/": {PREPARER},
    "": NOBODY,
}
GROUPS = {name: arns().of("autoscaling", f"autoScalingGroup:1:autoScalingGroupName/{name}") for name in (
    *INSTALLATION.groups, "theirs-train"
)}  # fmt: skip
TRAIN, ON_DEMAND, PREPARE, THEIRS = GROUPS.values()
ELSE = {
    ("secretsmanager:GetSecretValue", arns().secret): {MACHINE, PREPARING},
    ("ecr:BatchGetImage", arns().repository): {MACHINE, PREPARING},
    ("ecr:PutImage", arns().repository): NOBODY,
    ("logs:PutLogEvents", arns().run_logs.replace("*", "log-stream:rn50-1/i-1/1")): {MACHINE, PREPARING},
    ("logs:PutLogEvents", arns().guard_logs.replace("*", "log-stream:x")): {GUARD},
    ("ssmmessages:OpenControlChannel", "*"): {MACHINE, PREPARING},
    ("ssm:GetParameter", f"arn:aws:ssm:{REGION}:{ACCOUNT}:parameter/x"): NOBODY,
    ("autoscaling:SetDesiredCapacity", TRAIN): {MACHINE, GUARD, SCHEDULER},
    ("autoscaling:SetDesiredCapacity", ON_DEMAND): {MACHINE, GUARD, SCHEDULER},
    ("autoscaling:SetDesiredCapacity", PREPARE): {PREPARING, GUARD, SCHEDULER},
    ("autoscaling:SetDesiredCapacity", THEIRS): NOBODY,
    ("autoscaling:UpdateAutoScalingGroup", TRAIN): {GUARD},
    ("autoscaling:CreateOrUpdateTags", TRAIN): NOBODY,
    ("ec2:RunInstances", "*"): NOBODY,
    ("iam:PassRole", role_arn("train-machine")): NOBODY,
    ("s3:ListBucketMultipartUploads", arns().bucket): {TRAINER},
    ("s3:GetLifecycleConfiguration", arns().bucket): NOBODY,
    ("s3:PutBucketVersioning", arns().bucket): NOBODY,
    ("sns:Publish", arns().topic): {GUARD},
}


def who(action: str, resource: str, context: dict[str, str] | None = None) -> set[str]:
    return {name for name in EVERYONE if caller(name).may(Request(action, resource, context or {}))}


@pytest.mark.parametrize("key", READ)
def test_who_reads(key: str) -> None:
    assert who("s3:GetObject", f"{arns().bucket}/{key}") == READ[key]


@pytest.mark.parametrize("key", WRITE)
def test_who_writes_over_what_is_there(key: str) -> None:
    for context in (OVER, OVER | {"s3:if-match": '"1"'}):
        assert who("s3:PutObject", f"{arns().bucket}/{key}", context) == WRITE[key]


@pytest.mark.parametrize("key", WRITE)
def test_a_preparation_alone_creates_datasets_and_nobody_creates_more_than_he_may_write(key: str) -> None:
    added = {PREPARER} if key.startswith("datasets/") else NOBODY
    for context in (NEW, PART):
        assert who("s3:PutObject", f"{arns().bucket}/{key}", context) == WRITE[key] | added


@pytest.mark.parametrize("key", [*READ, *WRITE])
def test_nobody_deletes_and_a_run_tags_its_own_checkpoints_alone(key: str) -> None:
    own = {TRAINER} if key.startswith("checkpoints/rn50-1/") else NOBODY
    resource = f"{arns().bucket}/{key}"
    assert who("s3:PutObjectTagging", resource) == own
    ends = {TRAINER} if key.startswith("runs/rn50-1/") else own  # its own unfinished uploads
    ends = {PREPARER} if key.startswith(("runs/prepare-1/", "datasets/")) else ends
    assert who("s3:AbortMultipartUpload", resource) == ends
    for action in ("s3:DeleteObject", "s3:DeleteObjectVersion", "s3:PutObjectVersionTagging", "s3:GetObjectVersion"):
        assert who(action, resource) == NOBODY


@pytest.mark.parametrize("key", WRITE)
def test_no_object_hides_in_a_storage_class_that_the_alarm_does_not_see(key: str) -> None:
    for storage in ("GLACIER_IR", "STANDARD_IA"):
        assert who("s3:PutObject", f"{arns().bucket}/{key}", NEW | {"s3:x-amz-storage-class": storage}) <= {GUARD}
    standard = {"s3:x-amz-storage-class": "STANDARD"}
    assert who("s3:PutObject", f"{arns().bucket}/{key}", OVER | standard) == WRITE[key]


@pytest.mark.parametrize("prefix", LIST)
def test_who_lists(prefix: str) -> None:
    assert who("s3:ListBucket", arns().bucket, {"s3:prefix": prefix}) == LIST[prefix]
    assert who("s3:ListBucket", arns().bucket) == NOBODY


@pytest.mark.parametrize(("action", "resource"), ELSE)
def test_who_may_do_what_else(action: str, resource: str) -> None:
    assert who(action, resource) == ELSE[action, resource]


def test_a_machine_takes_on_the_role_of_its_runs_and_nobody_any_other() -> None:
    roles = ("train-run", "prepare-run", "train-machine", "prepare-machine", "guard", "scheduler")
    found = {
        (name, role) for name in EVERYONE for role in roles if caller(name).may_assume(role_arn(role), trust(role))
    }
    assert found == {(MACHINE, "train-run"), (PREPARING, "prepare-run")}
    others = {name for name in EVERYONE if caller(name).may(Request("sts:AssumeRole", role_arn("cdk-deploy-role")))}
    assert others == NOBODY
