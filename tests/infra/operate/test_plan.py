"""The plan of a launch: hours, dollars, data and name, before anything is started."""

from __future__ import annotations

import re

import boto3
import pytest

from infra.config import Installation
from infra.operate.planning.arguments import number_given
from infra.operate.planning.options import Request
from infra.operate.planning.plan import new_run_id
from infra.operate.planning.prices import find_prices
from infra.operate.planning.refusals import check, check_gpus
from infra.operate.planning.shown import describe
from infra.operate.session import Aws as Operator
from infra.operate.terminal import plain
from tests.infra import hub
from tests.infra.deployed import Deployed
from tests.infra.operate.launches import plan
from trainer.contract import RUN_ID_RULE, UserError

pytestmark = pytest.mark.usefixtures("served")


def test_disk_and_address_are_told_to_the_guard_which_counts_them(place: Deployed) -> None:
    train, prepare = plan(disk_gib="730"), plan(Request(kind="prepare", data=hub.IMAGENET))
    assert train.spec.extras_usd_per_hour == pytest.approx(0.08 + 0.005)
    assert prepare.spec.extras_usd_per_hour == pytest.approx(450 * 0.08 / 730 + 0.005)


def test_a_disk_has_the_price_of_its_region_where_aws_tells_it(place: Deployed) -> None:
    place.aws.set(disk_usd=0.152)  # São Paulo's, nearly twice that of us-east-1
    planned = plan(disk_gib="730")
    assert planned.spec.extras_usd_per_hour == pytest.approx(0.152 + 0.005)
    assert "disk" not in planned.prices_source
    place.aws.fault("pricing.*", code="AccessDeniedException")
    abroad = find_prices(Operator(boto3.Session(region_name="sa-east-1")), ["g5.xlarge"])
    assert abroad.disk_usd_per_gib_month == 0.08
    assert "; disk: as in us-east-1" in abroad.source


def test_a_budget_or_a_deadline_below_the_estimate_is_refused_unless_asked_for(place: Deployed) -> None:
    with pytest.raises(UserError, match=r"BUDGET=2 is below the estimate of \$6\.02 .*: use BUDGET=8, or ANYWAY=1"):
        plan(Request(recipe="finetune", budget_usd=2.0))
    with pytest.raises(UserError, match=r"HOURS=3 is below the estimate of 14\.4 hours .*: use HOURS=29, or ANYWAY=1"):
        plan(Request(recipe="finetune", hours=3.0))
    assert plan(Request(recipe="finetune", hours=3.0, budget_usd=2.0, anyway=True)).spec.budget_usd == 2.0
    assert plan(Request(recipe="finetune", arguments=("--epochs=4",), budget_usd=2.0)).spec.budget_usd == 2.0


def test_prices_that_nobody_tells_come_from_the_dated_table(place: Deployed) -> None:
    place.aws.fault("pricing.*", code="AccessDeniedException")
    place.aws.fault("ec2.DescribeSpotPriceHistory", code="UnauthorizedOperation")
    planned = plan(Request(recipe="finetune"))
    assert planned.spec.prices["g5.4xlarge"] == 1.624
    assert planned.offered[0].usd_per_hour == 1.006
    assert "2026-01-19" in planned.prices_source
    assert "did not answer" in plain(describe(planned))


def test_prepared_data_is_used_where_the_bucket_has_it(place: Deployed) -> None:
    shards = [{"file": "a.arrow", "images": 10, "bytes": 1000, "crc32": 1}]
    sizes = [{"short_side": 256, "quality": 90, "shards": shards}]
    index = {"splits": {"train": {"images": 640_583, "sizes": sizes}, "val": {"images": 0, "sizes": []}}}
    place.put("datasets/imagenet-1k/v1/index.json", index)
    whole, half = plan(Request(recipe="finetune", data="other/dataset")), plan(Request(recipe="finetune"))
    assert half.spec.data == f"s3://{place.bucket}/datasets/imagenet-1k/v1"
    assert half.offered[0].hours < 0.6 * whole.offered[0].hours
    with pytest.raises(UserError, match="is in another bucket"):
        plan(Request(recipe="finetune", data="s3://elsewhere/datasets/imagenet-1k/v1"))


def test_a_head_of_another_size_than_the_index_names_is_refused_before_it_costs_anything(place: Deployed) -> None:
    shards = [{"file": "a.arrow", "images": 10, "bytes": 1000, "crc32": 1}]
    split = {"images": 10, "sizes": [{"short_side": 256, "quality": 90, "shards": shards}]}
    splits = {"splits": {"train": split, "val": split}}
    place.put("datasets/pets/v1/index.json", splits | {"classes": ["cat", "dog", "owl"]})
    data = f"s3://{place.bucket}/datasets/pets/v1"
    for words in (("--model.num-classes", "4"), ("--model.num-classes=3", "--model.num_classes=4")):
        with pytest.raises(UserError) as refused:
            plan(Request(recipe="finetune", data=data, arguments=words))
        assert str(refused.value) == (
            f"--model.num-classes is 4, but {data} has 3 classes: leave the option out, and the model has as many "
            "outputs as the data has classes"
        )
    for fitting in ((), ("--model.num-classes", "3"), ("--model.num-classes", "0")):
        assert plan(Request(recipe="finetune", data=data, arguments=fitting)).spec.data == data
    place.put("datasets/pets/v1/index.json", splits)  # which names no classes
    assert plan(Request(recipe="finetune", data=data, arguments=("--model.num-classes", "4"))).spec.data == data


@pytest.mark.parametrize(
    ("arguments", "epochs"),
    [((), 0), (("--epochs", "4"), 4), (("--epochs=12", "--seed", "1"), 12), (("--optim.warmup-epochs", "5"), 0)],
)
def test_epochs_on_the_command_line_change_the_estimate(arguments: tuple[str, ...], epochs: int) -> None:
    assert number_given("epochs", arguments) == epochs


def test_a_new_run_is_named_after_recipe_and_day() -> None:
    names = {new_run_id("finetune", 1.79e9) for _ in range(50)}
    assert len(names) > 40
    assert all(name.startswith("finetune-20260921-") for name in names)
    assert all(re.fullmatch(RUN_ID_RULE, name) for name in names)
    assert new_run_id("prepare-imagenet-1k", 0.0)[:-4] == "prepare-imagenet-1k-19700101-"


@pytest.mark.parametrize(
    ("asked", "others"),
    [
        (Request(recipe="finetune", types=("g4dn.xlarge",)), "g6.xlarge,g5.xlarge"),
        (Request(types=("g5.xlarge", "g4dn.xlarge", "g6.xlarge")), "g5.xlarge,g6.xlarge"),
        (Request(recipe="digits", types=("g4dn.xlarge",), arguments=("--precision=bf16",)), "g6.xlarge,g5.xlarge"),
        (
            Request(types=("g4dn.xlarge",), arguments=("--precision", "fp16", "--precision", "bf16")),
            "g6.xlarge,g5.xlarge",
        ),
    ],
    ids=["finetune", "among others", "asked for", "the last one counts"],
)
def test_a_gpu_without_bf16_is_refused_before_it_costs_anything(asked: Request, others: str) -> None:
    with pytest.raises(UserError) as refused:
        check_gpus(asked, Installation())
    assert str(refused.value) == (
        "g4dn.xlarge cannot compute in bf16, which this run asks for or its recipe has: pass "
        f'ARGS="--precision fp16", or use other types, TYPES={others}'
    )


@pytest.mark.parametrize(
    "asked",
    [
        Request(types=("g4dn.xlarge",), arguments=("--epochs", "4", "--precision", "fp16")),
        Request(types=("g4dn.xlarge",), arguments=("--precision=fp32",)),
        Request(recipe="digits", types=("g4dn.xlarge",)),
        Request(types=("g5.xlarge", "p5.4xlarge")),
    ],
    ids=["fp16", "fp32", "the recipe is in fp32", "others"],
)
def test_a_precision_that_every_gpu_has_passes(asked: Request) -> None:
    check(asked, Installation())
    check_gpus(asked, Installation())
