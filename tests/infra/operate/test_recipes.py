"""recipes: the table needs no account, its prices say whence they come, and its figures are those of the estimate."""

from __future__ import annotations

import json
import time
from typing import Any

import boto3
import pytest

from infra.operate.commands import recipes as command
from infra.operate.commands.recipes import cheapest, feed, offers_of
from infra.operate.planning import prices, work
from infra.operate.planning.catalog import SPOT_PRICES, TYPES
from infra.operate.planning.estimate import StageSpeed
from infra.operate.planning.prices import Prices, dated_prices
from infra.operate.planning.scaling import estimate
from infra.operate.planning.work import work_of
from tests.emulator.aws import Aws
from tests.infra.operate import works
from tests.infra.operator import infra, operate, session
from trainer.contract import UserError

GPUS = [name for name, one in TYPES.items() if one.gpu]


def document(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert operate("recipes", "--json", *arguments) == 0
    return json.loads(capsys.readouterr().out)


def test_without_region_or_credentials_the_table_has_dated_prices() -> None:
    nobody = {"AWS_REGION": "", "AWS_DEFAULT_REGION": "", "AWS_CONFIG_FILE": "/nowhere", "AWS_ACCESS_KEY_ID": ""}
    ended = infra("recipes", **nobody)
    assert (ended.code, ended.error) == (0, "")
    for name in work.recipes():
        assert f"\n{name} " in ended.said
    assert "2026-01-19" in ended.said
    assert "spot prices: SkyPilot's catalog v9" in ended.said


def test_credentials_without_a_region_ask_nobody(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_REGION", raising=False)
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    assert prices.quick_prices(boto3.Session(), GPUS) == dated_prices(GPUS)


def test_prices_are_todays_where_aws_answers_and_only_of_what_it_sells(
    aws: Aws, capsys: pytest.CaptureFixture[str]
) -> None:
    found = document(capsys, "--recipe", "finetune")
    assert found["prices_source"].startswith("list prices: AWS Pricing API for us-east-1, 20")
    (recipe,) = found["recipes"]
    types = {one["type"]: one for one in recipe["types"]}
    assert "g7.2xlarge" not in types  # the emulated Pricing API has none
    assert types["g5.xlarge"]["usd_per_hour"] == 1.0
    assert types["g5.xlarge"]["spot_usd"] < types["g5.xlarge"]["on_demand_usd"]


def test_where_aws_does_not_answer_in_time_the_dated_prices_stand(
    aws: Aws, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(prices, "PRICES_SECONDS", 0.01)
    monkeypatch.setattr(prices, "find_prices", lambda *_: time.sleep(0.1))
    assert prices.quick_prices(session(), GPUS) == dated_prices(GPUS)


def test_the_document_has_every_recipe_on_every_type_with_hours_and_dollars(
    aws: Aws, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "quick_prices", lambda _, types: dated_prices(types))
    found = {one["recipe"]: one for one in document(capsys)["recipes"]}
    assert [*found] == work.recipes()
    tuned = found["finetune"]
    assert (tuned["epochs"], tuned["stages"]) == (30, [[224, 30]])
    assert tuned["full_epochs"] == 30
    types = {one["type"]: one for one in tuned["types"]}
    assert {*types} == {name for name in GPUS if not name.startswith("g4dn")}  # which has no bf16
    (expected,) = estimate(work_of("finetune"), ["g5.xlarge"], works.PRICES, extras_usd_per_hour=0.018)
    assert types["g5.xlarge"]["hours"] == pytest.approx(expected.hours)
    assert types["g5.xlarge"]["on_demand_usd"] == pytest.approx(expected.usd, rel=0.001)
    assert types["g5.xlarge"]["spot_usd"] == pytest.approx(
        expected.hours * (SPOT_PRICES["g5.xlarge"] + 0.018), rel=0.01
    )
    assert types["g5.8xlarge"]["spot_usd"] is None
    assert types["g5.xlarge"]["source"] == "table"
    assert types["p5.4xlarge"]["source"] == "measured"


def test_types_and_recipe_narrow_the_table(aws: Aws, capsys: pytest.CaptureFixture[str]) -> None:
    (one,) = document(capsys, "--recipe", "digits", "--types", "g5.xlarge,g6.xlarge")["recipes"]
    assert one["recipe"] == "digits"
    assert {type["type"] for type in one["types"]} == {"g5.xlarge", "g6.xlarge"}
    with pytest.raises(UserError, match="recipe 'x' is unknown"):
        operate("recipes", "--recipe", "x")
    with pytest.raises(UserError, match=r"'c7a\.2xlarge' has no GPU"):
        operate("recipes", "--types", "c7a.2xlarge")


def test_a_row_shows_the_cheapest_of_both_markets() -> None:
    listed = dict.fromkeys(GPUS, 9.0) | {"g5.xlarge": 0.5}
    offers = offers_of(works.work(), GPUS, Prices(listed, {"g6.xlarge": 0.01, "g6.2xlarge": 0.02}, "made"), 0.0)
    assert [one.estimate.type for one in cheapest(offers)] == ["g6.xlarge", "g6.2xlarge", "g5.xlarge"]


def test_what_the_loader_must_feed_is_told_for_each_size_and_marked_where_it_cannot() -> None:
    stages = [
        StageSpeed(pixels, 1, wanted, 3000, "table") for pixels, wanted in ((96, 4400.4), (128, 2500), (160, 1600))
    ]
    assert feed(stages) == "96: 4,400*, 128: 2,500, 160: 1,600"
    assert feed([*stages, StageSpeed(176, 1, 1316, 3000, "table")]) == "96: 4,400* … 176: 1,316"
