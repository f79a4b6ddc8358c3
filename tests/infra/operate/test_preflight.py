"""preflight: every reason why a deploy or a launch would fail, all at once, each with one command as its fix."""

from __future__ import annotations

import time
from collections.abc import Callable

import aws_cdk as cdk
import pytest

from infra.config import Installation
from infra.operate.commands import preflight as module
from infra.stacks.image import image
from tests.emulator.aws import Aws
from tests.infra import deployed
from tests.infra.operator import GIVEN_IMAGE, fixes, infra, prepare_account, put_token, rows
from trainer.contract import UserError

pytestmark = pytest.mark.usefixtures("served")
LEAST_CHECKS = 14
SECONDS = 15.0


def test_where_everything_is_ready_it_says_so_quickly(installed: Aws) -> None:
    began = time.monotonic()
    settings = ("-c", f"image_uri={GIVEN_IMAGE}", "-c", "email=me@example.org")
    ended = infra(*settings, "preflight")
    assert time.monotonic() - began < SECONDS
    assert ended.code == 0, ended.said + ended.error
    found = rows(ended.said)
    assert len(found) >= LEAST_CHECKS
    assert {state for state, _ in found.values()} <= {"ok", "not needed"}
    assert "make deploy" in ended.said


def test_that_nobody_would_be_told_is_a_warning_and_no_failure(installed: Aws, look: Callable[..., str]) -> None:
    said = look()
    state, text = rows(said)["mail"]
    assert (state, fixes(said)) == ("warning", {})
    assert "nobody is told when the guard acts or fails" in text
    assert "resnet-spot:email" in text
    assert rows(look(email="me@example.org"))["mail"][0] == "ok"


@pytest.mark.parametrize("given", ["r.example/a:1", "r.example/a:1@sha256:12"])
def test_an_image_by_its_tag_is_not_deployed_and_what_runs_with_one_can_be_stopped(
    given: str, aws: Aws, look: Callable[..., str]
) -> None:
    said = look(image_uri=given)
    assert f"resnet-spot:image_uri={given!r} has no digest" in rows(said)["Docker"][1]
    assert fixes(said)["Docker"] == f"docker buildx imagetools inspect {given}"
    with pytest.raises(UserError, match="has no digest, and a tag may name another image"):
        image(cdk.Stack(), Installation(image_uri=given))
    assert Installation.from_context({"resnet-spot:image_uri": given}).image_uri == given  # as `make stop` reads it


def test_in_a_fresh_account_everything_that_lacks_is_told_at_once_with_one_command_each(aws: Aws) -> None:
    aws.set(quotas={"L-3819A6DF": 0.0})
    ended = infra("-c", f"image_uri={GIVEN_IMAGE}", "preflight")
    assert ended.code == 3
    told = fixes(ended.said)
    assert told.keys() == {"vCPU quota", "spot role", "machine image", "token", "CDK bootstrap"}
    assert told["CDK bootstrap"].endswith("bootstrap aws://123456789012/us-east-1")
    assert told["token"] == "make secret"
    assert told["spot role"] == "aws iam create-service-linked-role --aws-service-name spot.amazonaws.com"
    assert told["vCPU quota"].endswith("--quota-code L-3819A6DF --desired-value 16")
    assert rows(ended.said)["gate of the hub"] == ("unknown", "needs the token first")


def test_the_commands_that_it_names_repair_what_it_found(aws: Aws, look: Callable[..., str]) -> None:
    assert "spot role" in fixes(look())
    prepare_account(aws)
    assert fixes(look()).keys() == {"token"}
    deployed.deploy(aws)
    put_token(aws)
    assert fixes(look()) == {}


def test_without_credentials_only_that_and_what_needs_none_is_told(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    ended = infra("preflight")
    found = rows(ended.said)
    assert ended.code == 3
    assert found["credentials"][0] == "failed"
    assert found["CDK command line"][0] == "ok"
    assert found["vCPU quota"] == ("unknown", "needs credentials")
    assert fixes(ended.said)["credentials"].startswith("aws configure")


def test_a_region_that_does_not_exist_is_named(ready: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "us-est-1")
    ended = infra("preflight")
    assert ended.code == 3
    assert "'us-est-1' is not a region of AWS" in ended.said


def test_a_check_that_is_denied_is_unknown_with_the_reason_and_fails_nothing(
    ready: Aws, look: Callable[..., str]
) -> None:
    ready.fault("service-quotas.*", code="AccessDeniedException", message="not for you")
    ready.fault("iam.ListRoles", code="AccessDenied", message="not for you")
    said = look()
    assert rows(said)["vCPU quota"] == ("unknown", "AWS refused (AccessDeniedException): not for you")
    assert rows(said)["spot role"][0] == "unknown"
    assert fixes(said) == {}


def test_a_laptop_without_docker_is_told(ready: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")
    ended = infra("preflight", "--build", "local")
    state, text = rows(ended.said)["Docker"]
    assert (state, ended.code) == ("failed", 3)
    assert "docker" in text


def test_a_check_that_hangs_is_unknown_and_holds_nobody_up(
    ready: Aws, look: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LIMIT_SECONDS", 3.0)
    slow = {**module.DEPLOY, "slow": lambda wanted: time.sleep(60)}
    monkeypatch.setattr(module, "DEPLOY", slow)
    began = time.monotonic()
    said = look()
    assert rows(said)["slow"] == ("unknown", "no answer in 3 s")
    assert time.monotonic() - began < SECONDS
