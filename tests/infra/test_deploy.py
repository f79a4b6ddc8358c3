"""deploy: preflight, dead stacks away, CDK with the installation's values, the image before away, then the launch.

The real `cdk` is in test_end_to_end.py; here a stand-in takes its place.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.config import Installation, Output
from infra.operate.deploy import prune_image
from infra.operate.leftovers import stack_status
from infra.operate.session import ROOT
from infra.operate.session import Aws as Operator
from tests.emulator.aws import Aws
from tests.emulator.aws_images import MANIFEST
from tests.infra import deployed, hub
from tests.infra.operator import fixes, infra, prepare_account, session, stand_in_for_cdk

INSTALLATION = Installation()
IMAGE = ("-c", "image_uri=registry.example/trainer:1")  # so that no Docker engine is needed
STACKS = (INSTALLATION.storage_stack, INSTALLATION.training_stack)


@pytest.fixture(autouse=True)
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[hub.Hub]:
    with hub.serve() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        yield served


@pytest.fixture
def account(aws: Aws) -> Aws:
    prepare_account(aws)
    return aws


def test_it_checks_deploys_and_launches(account: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stand_in_for_cdk(tmp_path, monkeypatch, deploys=True)
    ended = infra(*IMAGE, "deploy", "--recipe", "digits", "--run", "first")
    assert ended.code == 0, ended.said + ended.error
    (call,) = calls()
    assert call[:4] == ["deploy", "--all", "--require-approval", "never"]
    assert "--import-existing-resources" not in call
    assert "resnet-spot:image_uri=registry.example/trainer:1" in call
    assert ended.said.index("checks in") < ended.said.index("deployed:") < ended.said.index("launched: first")
    assert ended.said.count("checks in") == 1
    assert deployed.Deployed(account).desired() == 1


def test_without_a_launch_nothing_bills(account: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_for_cdk(tmp_path, monkeypatch, deploys=True)
    ended = infra(*IMAGE, "deploy", "--no-launch", "--recipe", "digits")
    assert ended.code == 0, ended.said + ended.error
    assert deployed.Deployed(account).desired() == 0
    assert "make launch" in ended.said


def test_a_failed_preflight_deploys_nothing(aws: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stand_in_for_cdk(tmp_path, monkeypatch, deploys=True)
    ended = infra(*IMAGE, "deploy", "--recipe", "digits")
    assert ended.code == 3
    assert "CDK bootstrap" in fixes(ended.said)
    assert calls() == []


def test_a_cdk_that_fails_launches_nothing(account: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_for_cdk(tmp_path, monkeypatch, code=1)
    ended = infra(*IMAGE, "deploy", "--recipe", "digits")
    assert ended.code == 4
    assert "cdk deploy ended with 1" in ended.error
    assert "the same command again goes on" in ended.error
    assert "launched" not in ended.said


def test_stacks_that_failed_at_first_are_deleted_and_made_again(
    account: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployed.deploy(account)
    account.set(stack_status={INSTALLATION.training_stack: "ROLLBACK_COMPLETE"})
    calls = stand_in_for_cdk(tmp_path, monkeypatch)
    ended = infra(*IMAGE, "deploy", "--no-launch", "--recipe", "digits")
    assert f"{INSTALLATION.training_stack} is in ROLLBACK_COMPLETE, from a deploy that failed" in ended.said
    assert stack_status(Operator(session()), INSTALLATION.training_stack) == ""
    assert stack_status(Operator(session()), INSTALLATION.storage_stack) == "CREATE_COMPLETE"
    assert len(calls()) == 1


def test_a_bucket_that_was_kept_is_adopted(account: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    account.client("s3").create_bucket(Bucket="my-store")
    calls = stand_in_for_cdk(tmp_path, monkeypatch)
    ended = infra(*IMAGE, "-c", "bucket_name=my-store", "deploy", "--no-launch", "--recipe", "digits")
    assert ended.code == 0, ended.said + ended.error
    assert "my-store is there and will be adopted" in ended.said
    assert "--import-existing-resources" in calls()[0]


def test_it_does_not_touch_an_installation_that_is_training(
    account: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployed.deploy(account).launch("running")
    calls = stand_in_for_cdk(tmp_path, monkeypatch)
    ended = infra(*IMAGE, "deploy", "--recipe", "digits")
    assert (ended.code, calls()) == (3, [])
    assert fixes(ended.said)["other runs"] == "make stop"


def test_it_does_not_touch_an_installation_that_prepares_data(
    account: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployed.deploy(account).launch("prepare-x", kind="prepare")
    calls = stand_in_for_cdk(tmp_path, monkeypatch)
    ended = infra(*IMAGE, "deploy", "--recipe", "digits")
    assert (ended.code, calls()) == (3, [])
    assert "the run prepare-x is active" in ended.said


def test_the_image_before_is_deleted_and_nothing_else(account: Aws, capsys: pytest.CaptureFixture[str]) -> None:
    ecr, repository = account.client("ecr"), "cdk-hnb659fds-container-assets-123456789012-us-east-1"
    ecr.create_repository(repositoryName=repository)
    for tag in ("old", "new", "others"):
        body = {"schemaVersion": 2, "mediaType": MANIFEST, "config": {"digest": f"sha256:{tag}"}, "layers": []}
        ecr.put_image(repositoryName=repository, imageManifest=json.dumps(body), imageTag=tag)
    registry, operator = "123456789012.dkr.ecr.us-east-1.amazonaws.com", Operator(session())
    for before in ("", f"{registry}/{repository}:new", "ghcr.io/team/trainer:1", f"{registry}/team:1"):
        prune_image(operator, before, f"{registry}/{repository}:new")
    prune_image(operator, f"{registry}/{repository}:old", f"{registry}/{repository}:new")
    left = {one["imageTag"] for one in ecr.list_images(repositoryName=repository)["imageIds"]}
    assert left == {"new", "others"}
    assert "deleted the image before" in capsys.readouterr().out


def test_ctrl_c_ends_cdk_and_says_how_to_go_on(account: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_for_cdk(tmp_path, monkeypatch)
    node, started = tmp_path / "node", tmp_path / "started"
    node.write_text(f"#!/bin/sh\necho $$ > {started}.part && mv {started}.part {started}\nexec sleep 300\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "infra", *IMAGE, "deploy", "--recipe", "digits"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(started)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on from here" in error
    assert not Path(f"/proc/{started.read_text().strip()}").exists()


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_stacks_tell_what_a_launch_needs(account: Aws) -> None:
    deployed.deploy(account)
    outputs = [Operator(session()).outputs(name) for name in STACKS]
    assert Output.BUCKET in outputs[0]
    assert Output.SCHEDULER_ROLE in outputs[1]
