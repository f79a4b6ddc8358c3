"""cost: the estimate with its source, the guard's tally beside the attempts ledger, what stands costs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from infra.config import Installation, Output
from infra.operate.commands.cost import attempt_row, total
from infra.operate.installation.standing import kept_image
from infra.operate.session import Aws as Operator
from infra.run.spend import Machine, Spend
from tests.emulator.aws import Aws
from tests.infra import deployed
from tests.infra.operator import infra
from trainer.contract import attempt_key, run_key

HOUR = 3600.0
NOON = 1_790_000_000.0


def test_before_the_first_deploy_it_estimates_from_prices_with_source_and_date(aws: Aws) -> None:
    ended = infra("cost", "--recipe", "finetune")
    assert ended.code == 0, ended.error
    assert "g5.xlarge     0.400       811              0.14   14.4     6.02" in ended.said
    assert "list prices: AWS Pricing API for us-east-1, 20" in ended.said
    assert "spot prices: EC2's history for us-east-1, 20" in ended.said
    assert "not measured by this project" in ended.said
    assert "$0.018 an hour for disk and public address, by list prices; the budget counts them, too" in ended.said
    assert "$0.095 an hour for checkpoints in the bucket; the budget does not count them" in ended.said
    assert "spent" not in ended.said


def test_where_aws_tells_no_prices_the_dated_table_does(aws: Aws) -> None:
    aws.fault("pricing.*", code="AccessDeniedException")
    aws.fault("ec2.DescribeSpotPriceHistory", code="UnauthorizedOperation")
    ended = infra("cost")
    assert ended.code == 0, ended.error
    assert "AWS Pricing API for us-east-1 on 2026-01-19" in ended.said
    assert "1.006" in ended.said


def test_a_budget_that_is_too_small_does_not_keep_the_estimate_from_being_told(aws: Aws) -> None:
    assert infra("cost", "--recipe", "finetune", "--budget", "1", "--hours", "1").code == 0


@pytest.fixture
def spent(aws: Aws) -> Aws:
    """A run on a machine that was reclaimed after an hour, and another that ran for two."""
    account = deployed.deploy(aws)
    account.launch("r1")
    machines = (
        Machine(id="i-1", type="g5.xlarge", zone="us-east-1b", market="spot", launched=NOON, ended=NOON + HOUR,
                usd_per_hour=0.5),
        Machine(id="i-2", type="g6.xlarge", zone="us-east-1c", market="on-demand", launched=NOON + HOUR,
                ended=NOON + 3 * HOUR, usd_per_hour=0.8),
    )  # fmt: skip
    account.put(run_key("r1", "spend.json"), Spend(at=NOON + 3 * HOUR, machines=machines).to_json())
    account.put(attempt_key("r1", 1), {
        "attempt": 1, "started": NOON + 240, "ended": NOON + 3540, "exit": 75, "message": "interrupted",
        "machine": {"id": "i-1", "type": "g5.xlarge", "zone": "us-east-1b", "market": "spot"},
    })  # fmt: skip
    account.put(attempt_key("r1", 2), {"attempt": 2, "started": NOON + HOUR, "machine": {}})
    return aws


def test_spend_is_told_by_machine_beside_what_the_machines_tell(spent: Aws) -> None:
    ended = infra("cost", "--run", "r1")
    assert ended.code == 0, ended.error
    assert "estimate" not in ended.said
    first, second = (line for line in ended.said.splitlines() if line.startswith("i-"))
    assert first.split()[-2:] == ["0.5000", "0.50"]
    assert second.split()[-2:] == ["0.8000", "1.60"]
    assert "together $2.10, of $10.00" in ended.said
    ledger = ended.said.partition("as the machines recorded them")[2]
    assert "55 min" in ledger
    assert "no end recorded" in ledger


def test_what_stands_costs_less_than_five_cents_a_day_without_the_data(spent: Aws) -> None:
    ended = infra("cost", "--run", "r1")
    standing = ended.said.partition("while nothing runs")[2]
    for what in ("data", "token", "guard", "alarms", "logs", "log lines"):
        assert f"\n  {what}" in standing
    assert float(standing.partition(" a month, $")[2].split()[0]) <= 0.05


def test_log_lines_that_came_in_are_paid_once_more(spent: Aws) -> None:
    spent.client("cloudwatch").put_metric_data(
        Namespace="AWS/Logs",
        MetricData=[{
            "MetricName": "IncomingBytes", "Value": 4e9,
            "Dimensions": [{"Name": "LogGroupName", "Value": deployed.INSTALLATION.log_group}],
        }],
    )  # fmt: skip
    (line,) = [line for line in infra("cost", "--run", "r1").said.splitlines() if line.startswith("  log lines")]
    assert line.split()[-5:] == ["4.0", "GB", "$2.00", "a", "month"]


def test_an_unknown_run_is_named_with_those_there_are(spent: Aws) -> None:
    ended = infra("cost", "--run", "r2")
    assert ended.code == 2
    assert "RUN='r2' is no run" in ended.error
    assert "r1" in ended.error


def test_a_run_that_bills_tells_how_fast() -> None:
    machine = Machine(id="i-1", type="g5.xlarge", zone="a", market="spot", launched=0.0, usd_per_hour=0.5)
    assert total(None, Spend(machines=(machine,)), 2 * HOUR) == "together $1.00, now $0.50 an hour"


def test_an_attempt_of_another_version_is_shown_as_far_as_it_goes() -> None:
    assert attempt_row({})[0] == ""
    assert attempt_row({"attempt": 3, "machine": "host"})[:2] == ("3", "host")


@pytest.mark.parametrize(
    ("image", "asked"),
    [
        ("1.dkr.ecr.eu-west-1.amazonaws.com/team/trainer@sha256:0", [("team/trainer", {"imageDigest": "sha256:0"})]),
        ("1.dkr.ecr.eu-west-1.amazonaws.com/team/trainer:v1", [("team/trainer", {"imageTag": "v1"})]),
        ("2.dkr.ecr.eu-west-1.amazonaws.com/team/trainer@sha256:0", []),  # of another account: it pays
        ("1.dkr.ecr.us-east-1.amazonaws.com/team/trainer@sha256:0", []),
        ("ghcr.io/team/trainer@sha256:0", []),
        ("", []),
    ],
)
def test_a_given_image_bills_where_it_is_in_the_registry_of_this_account(image: str, asked: list[Any]) -> None:
    found: list[Any] = []

    def describe_images(repositoryName: str, imageIds: list[dict[str, str]]) -> Any:  # noqa: N803  # as boto3
        found.append((repositoryName, *imageIds))
        return {"imageDetails": [{"imageSizeInBytes": 1e9}]}

    ecr = SimpleNamespace(describe_images=describe_images)
    aws = SimpleNamespace(
        account="1", region="eu-west-1", client=lambda service: ecr, outputs=lambda stack: {Output.IMAGE: image}
    )
    kept = kept_image(cast(Operator, aws), Installation())
    assert found == asked
    assert [one.usd_per_month for one in kept] == [pytest.approx(0.1)] * len(asked)
