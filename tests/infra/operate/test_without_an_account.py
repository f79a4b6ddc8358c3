"""Before there is an account: what needs none answers, and preflight lists what a first run needs, in order."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest

from infra.operate.checks.beginning import FIRST_HOUR
from tests.emulator.aws import Aws
from tests.infra import deployed
from tests.infra.operator import GIVEN_IMAGE, fixes, rows

ANSWER_SECONDS = 2.0  # of the processor
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def nobody(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> Aws:
    """Neither credentials nor region."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    return aws


def test_an_estimate_needs_neither_credentials_nor_region(nobody: Aws, run: Run) -> None:
    began = time.process_time()
    code, said, error = run("cost", "--recipe", "finetune")
    assert time.process_time() - began < ANSWER_SECONDS
    assert (code, error) == (0, "")
    assert "2026-01-19" in said
    assert "spot prices: SkyPilot's catalog v9" in said
    assert "only AWS can tell. no AWS region is set: export AWS_REGION=us-east-1" in said
    assert "a month" not in said
    assert nobody.calls() == []
    document = json.loads(run("cost", "--json")[1])
    assert (document["spent"], document["standing"]) == (None, None)
    assert document["estimate"]["types"]


def test_with_a_region_alone_the_estimate_says_how_to_get_credentials(
    nobody: Aws, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    code, said, error = run("cost", "--recipe", "finetune")
    assert (code, error) == (0, "")
    assert "there are no AWS credentials: export AWS_PROFILE=" in said


def test_what_a_run_has_cost_is_an_error_without_credentials(nobody: Aws, run: Run) -> None:
    assert run("cost", "--run", "r1")[::2] == (
        4, "error: no AWS region is set: export AWS_REGION=us-east-1, or run `aws configure`\n"
    )  # fmt: skip


def test_a_login_that_has_ended_gets_the_estimate_of_the_tables_and_the_error(aws: Aws, run: Run) -> None:
    deployed.deploy(aws)
    aws.fault("*", code="ExpiredToken", message="expired", status=403)
    code, said, error = run("cost")
    assert code == 4
    assert "2026-01-19" in said
    assert "a month" not in said
    assert "the keys in the environment have expired" in error
    assert run("cost", "--json")[:2] == (4, "")


def test_the_recipes_need_neither_credentials_nor_region(nobody: Aws, run: Run) -> None:
    code, said, error = run("recipes", "--recipe", "digits")
    assert (code, error) == (0, "")
    assert "2026-01-19" in said


def test_preflight_lists_all_that_a_first_run_lacks_in_the_order_of_a_first_hour(nobody: Aws, run: Run) -> None:
    began = time.process_time()
    code, said, error = run("-c", f"image_uri={GIVEN_IMAGE}", "preflight")
    assert time.process_time() - began < ANSWER_SECONDS
    assert (code, error) == (3, "")
    told = fixes(said)
    assert tuple(told)[: len(FIRST_HOUR)] == FIRST_HOUR
    assert tuple(rows(said))[: len(FIRST_HOUR)] == FIRST_HOUR
    assert told["vCPU quota"].endswith("/servicequotas/home/services/ec2/quotas/L-3819A6DF")
    assert told["region"] == "export AWS_REGION=us-east-1"
    assert told["CDK bootstrap"].endswith("/us-east-1")
    assert told["token"] == "make secret"
    assert "hours or days" in said
    assert "the free plan starts no machine with a GPU" in said


def test_where_the_region_alone_lacks_the_account_is_told_and_the_rest_waits(
    ready: Aws, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    code, said, _ = run("preflight")
    assert code == 3
    assert rows(said)["credentials"][0] == "ok"
    assert "AWS account" not in rows(said)
    assert fixes(said)["region"] == "export AWS_REGION=us-east-1"
    assert rows(said)["vCPU quota"] == ("unknown", "needs a region")


def test_where_a_login_has_ended_that_alone_is_to_mend(ready: Aws, run: Run) -> None:
    ready.fault("*", code="ExpiredToken", message="expired", status=403)
    _, said, _ = run("-c", f"image_uri={GIVEN_IMAGE}", "preflight")
    assert fixes(said).keys() == {"credentials"}
