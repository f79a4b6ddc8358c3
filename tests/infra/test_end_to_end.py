"""The whole life of an installation over HTTP, without AWS: the real `make deploy` of a checkout, with the unmodified
`cdk` and Docker, against the emulated account; run, watch, stop, destroy, and nothing of it left in any service.

The machines do not boot here (tests/infra/test_boot*.py) and nobody reclaims them (tests/simulate); the image is a
stand-in, since its content is the matter of tests/trainer/test_image.py.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from infra.config import Installation, Output, Tag
from infra.operate.session import ExitCode
from tests.emulator.aws import Aws
from tests.emulator.inventory import COVERED, inventory
from tests.emulator.registry import Registry
from tests.engine import BASE
from tests.infra.checkout import Checkout, fixes, make_checkout, prepare_the_account
from trainer.contract import run_key

INSTALLATION = Installation(bucket_name="my-imagenet")
RUN = "first"
STAND_IN = f"FROM {BASE}\nARG COMMIT\nLABEL commit=$COMMIT resnet-spot-end-to-end=yes\nCOPY trainer /app/trainer\n"


@pytest.fixture
def checkout(aws: Aws, registry: Registry, engine: docker.DockerClient, tmp_path: Path) -> Iterator[Checkout]:
    with make_checkout(aws, registry, engine, tmp_path, STAND_IN, INSTALLATION.bucket_name) as found:
        yield found


def desired(aws: Aws) -> int:
    groups = aws.client("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=[INSTALLATION.train_group])
    return int(groups["AutoScalingGroups"][0]["DesiredCapacity"])


def machines(aws: Aws) -> list[dict[str, Any]]:
    """Those that bill."""
    pages = aws.client("ec2").get_paginator("describe_instances").paginate()
    found = [machine for page in pages for reservation in page["Reservations"] for machine in reservation["Instances"]]
    return [machine for machine in found if machine["State"]["Name"] != "terminated"]


def outputs(aws: Aws, stack: str) -> dict[str, str]:
    (found,) = aws.client("cloudformation").describe_stacks(StackName=stack)["Stacks"]
    return {output["OutputKey"]: output["OutputValue"] for output in found["Outputs"]}


def resource_types(aws: Aws) -> set[str]:
    found = set()
    for stack in (INSTALLATION.storage_stack, INSTALLATION.training_stack):
        template = aws.client("cloudformation").get_template(StackName=stack)["TemplateBody"]
        found |= {resource["Type"] for resource in template["Resources"].values()}
    return found


def run_the_deployed_guard(aws: Aws, checkout: Checkout, folder: Path) -> None:
    """Its own zip and its own environment, as Lambda would call it; once."""
    function = aws.client("lambda").get_function(FunctionName=INSTALLATION.guard_function)["Configuration"]
    (name,) = [b["Name"] for b in aws.client("s3").list_buckets()["Buckets"] if b["Name"].startswith("cdk-")]
    keys = [o["Key"] for o in aws.client("s3").list_objects_v2(Bucket=name)["Contents"] if o["Key"].endswith(".zip")]
    (body,) = [aws.client("s3").get_object(Bucket=name, Key=key)["Body"].read() for key in keys]
    zipfile.ZipFile(io.BytesIO(body)).extractall(folder)
    module, _, handler = function["Handler"].rpartition(".")
    ended = subprocess.run(
        [sys.executable, "-c", f"import {module}; {module}.{handler}({{}}, None)"],
        cwd=folder, env=checkout.environ | function["Environment"]["Variables"], capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr  # it fails where it could not read or do something


def write_log(aws: Aws, *lines: str) -> None:
    logs, stream = aws.client("logs"), f"{RUN}/i-1/1"
    logs.create_log_stream(logGroupName=INSTALLATION.log_group, logStreamName=stream)
    now = int(time.time() * 1000)
    events = [{"timestamp": now + i, "message": line} for i, line in enumerate(lines)]
    logs.put_log_events(logGroupName=INSTALLATION.log_group, logStreamName=stream, logEvents=events)


@pytest.mark.engine
def test_an_installation_comes_lives_and_goes_without_a_trace(
    aws: Aws, registry: Registry, checkout: Checkout, tmp_path: Path
) -> None:
    prepare_the_account(aws, checkout)
    before = inventory(aws)
    deploy_and_launch(aws, registry, checkout)
    check_what_was_launched(aws, checkout, tmp_path / "function")
    watch_the_run(aws, checkout)
    stop_and_go_on(aws, checkout)
    destroy_but_keep_the_data(aws, registry, checkout, before)
    deploy_again_over_the_data(aws, checkout, before)
    purge_everything(aws, registry, checkout, before)


def deploy_and_launch(aws: Aws, registry: Registry, checkout: Checkout) -> None:
    said = checkout.make("deploy", "RECIPE=digits", f"RUN={RUN}", "HOURS=2", "BUDGET=3", "ARGS=--epochs 2")
    assert not re.search(r"end.of.life|telemetry|NOTICES|npm (warn|notice)", said, re.IGNORECASE), said
    assert said.index("checks in") < said.index("Synthesis time") < said.index(f"launched: {RUN}")
    image = outputs(aws, INSTALLATION.training_stack)[Output.IMAGE]
    repository, _, tag = image.partition("/")[2].partition(":")
    assert pushed(registry) == {repository: [tag]}
    assert resource_types(aws) <= COVERED, resource_types(aws) - COVERED


def check_what_was_launched(aws: Aws, checkout: Checkout, folder: Path) -> None:
    """One spot machine with its tags and its schedule, the spec, and a guard that bills it."""
    (machine,) = machines(aws)
    tags = {tag["Key"]: tag["Value"] for tag in machine["Tags"]}
    assert (tags[Tag.INSTALLATION], tags[Tag.RUN]) == (INSTALLATION.name, RUN)
    assert machine["InstanceLifecycle"] == "spot"
    assert float(tags[Tag.DEADLINE]) == pytest.approx(time.time() + 2 * 3600, abs=600)
    schedules = aws.client("scheduler").list_schedules(GroupName=INSTALLATION.schedule_group)["Schedules"]
    assert [schedule["Name"] for schedule in schedules] == [RUN]
    bucket, read = INSTALLATION.bucket_name, aws.client("s3").get_object
    spec = json.loads(read(Bucket=bucket, Key=run_key(RUN, "spec.json"))["Body"].read())
    assert (spec["arguments"], spec["budget_usd"], spec["hours"]) == (["digits", "--epochs", "2"], 3, 2)

    run_the_deployed_guard(aws, checkout, folder)
    spend = json.loads(read(Bucket=bucket, Key=run_key(RUN, "spend.json"))["Body"].read())
    told = [(one["id"], one["type"]) for one in spend["machines"]]
    assert told == [(machine["InstanceId"], machine["InstanceType"])]
    assert desired(aws) == 1


def watch_the_run(aws: Aws, checkout: Checkout) -> None:
    checkout.make("launch", "RECIPE=digits", "RUN=second", code=ExitCode.PREFLIGHT)  # one at a time
    assert RUN in checkout.make("status")
    assert machines(aws)[0]["InstanceType"] in checkout.make("cost", f"RUN={RUN}")
    write_log(aws, "step 1", "step 2")
    assert re.search(r"step 1\n.*step 2\n", checkout.make("logs", "ARGS=--no-follow"))
    token = "hf_" + "canary" * 5
    assert token not in checkout.make("secret", stdin=f"{token}\n")
    assert aws.client("secretsmanager").get_secret_value(SecretId=INSTALLATION.secret_name)["SecretString"] == token


def stop_and_go_on(aws: Aws, checkout: Checkout) -> None:
    checkout.make("stop")
    assert (desired(aws), machines(aws)) == (0, [])
    # BUDGET= and HOURS= of the run are larger than the defaults: without a terminal they are said again
    assert "digits come with the image" in checkout.make("launch", f"RUN={RUN}", "BUDGET=3", "HOURS=2")
    assert (desired(aws), len(machines(aws))) == (1, 1)


def destroy_but_keep_the_data(aws: Aws, registry: Registry, checkout: Checkout, before: set[tuple[str, str]]) -> None:
    """Twice; and with credentials that have expired it says so."""
    said = checkout.make("destroy")
    kept = inventory(aws) - before
    assert {kind for kind, _ in kept} == {"S3 bucket", "secret", "CloudFormation stack"}, said
    assert {name for kind, name in kept if kind == "CloudFormation stack"} == {INSTALLATION.storage_stack}
    assert machines(aws) == []
    assert pushed(registry) == {}
    checkout.make("destroy")
    aws.fault("sts.GetCallerIdentity", "ExpiredToken")
    assert "keys in the environment have expired: export new" in checkout.make("destroy", code=ExitCode.REFUSED)
    aws.heal()


def deploy_again_over_the_data(aws: Aws, checkout: Checkout, before: set[tuple[str, str]]) -> None:
    """After somebody has deleted the storage stack by hand."""
    aws.client("cloudformation").delete_stack(StackName=INSTALLATION.storage_stack)  # by hand: it lets go of the data
    assert {kind for kind, _ in inventory(aws) - before} == {"S3 bucket", "secret"}
    lost = fixes(checkout.make("deploy", "NO_LAUNCH=1", "RECIPE=digits", code=ExitCode.PREFLIGHT))
    assert lost == {
        "token": "aws secretsmanager delete-secret --force-delete-without-recovery "
        f"--secret-id {INSTALLATION.secret_name}"
    }
    secrets = aws.client("secretsmanager")
    secrets.delete_secret(SecretId=INSTALLATION.secret_name, ForceDeleteWithoutRecovery=True)
    checkout.make("deploy", "NO_LAUNCH=1", "RECIPE=digits")
    assert outputs(aws, INSTALLATION.storage_stack)[Output.BUCKET] == INSTALLATION.bucket_name
    assert (desired(aws), machines(aws)) == (0, [])
    assert RUN in checkout.make("status")


def purge_everything(aws: Aws, registry: Registry, checkout: Checkout, before: set[tuple[str, str]]) -> None:
    checkout.make("destroy", "PURGE=1", code=ExitCode.USAGE)  # there is nobody to ask
    said = checkout.make("destroy", "PURGE=1", "YES=1")
    assert inventory(aws) == before, said
    assert pushed(registry) == {}
    checkout.make("destroy", "PURGE=1", "YES=1")


def pushed(registry: Registry) -> dict[str, list[str]]:
    """What CDK put there; the registry is the session's."""
    return {name: tags for name, tags in registry.tags().items() if name.startswith("cdk-")}
