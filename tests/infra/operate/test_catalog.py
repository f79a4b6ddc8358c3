"""The tables of catalog.py agree with the trainer's recipes and the context's defaults, and order by cost."""

from __future__ import annotations

import json

import pytest

from infra.config import CPU_TYPES, GPU_TYPES
from infra.operate.planning import catalog
from tests import ROOT
from trainer.contract import UserError
from trainer.recipes import named

PRICES = {type.name: type.usd_per_hour for type in catalog.TYPES.values()}
IMAGES = {"digits": 1437, "ILSVRC/imagenet-1k": catalog.IMAGENET_IMAGES, "": catalog.IMAGENET_IMAGES}


def test_the_table_of_recipes_says_what_the_trainer_computes() -> None:
    assert catalog.RECIPE_WORK.keys() == named.RECIPES.keys()
    for name, work in catalog.RECIPE_WORK.items():
        config = named.RECIPES[name]()
        images = [IMAGES[work.data] * (config.resolution_at(epoch) / 224) ** 2 for epoch in range(config.epochs)]
        assert work.data == named.DEFAULT_DATA.get(name, named.IMAGENET)
        assert work.epochs == config.epochs
        assert work.precision == config.precision
        assert work.images_per_epoch == pytest.approx(sum(images) / config.epochs, rel=0.01)


def test_every_default_type_is_in_the_table_with_or_without_a_gpu() -> None:
    assert all(type.gpu for type in catalog.gpu_types(GPU_TYPES.split(",")))
    assert not any(catalog.instance_type(name).gpu for name in CPU_TYPES.split(","))


def test_a_gpu_that_was_measured_has_the_speed_that_was_measured() -> None:
    results = {name: ROOT / f"benchmarks/results/gpu-{name.lower()}.json" for name in catalog.GPUS}
    measured = {name: json.loads(path.read_text())["rows"] for name, path in results.items() if path.exists()}
    assert "H100" in measured
    for name, rows in measured.items():
        assert catalog.GPUS[name].images_per_second == rows["ours_bf16"]["images_per_second"]


def test_types_are_ordered_by_dollars_per_image_and_not_per_hour() -> None:
    ordered = catalog.estimate("finetune", GPU_TYPES.split(","), PRICES)
    costs = [one.usd_per_million_images for one in ordered]
    assert costs == sorted(costs)
    cheapest_hour = min(ordered, key=lambda one: one.usd_per_hour)
    assert ordered[0].type == "g5.xlarge"
    assert cheapest_hour.type == "g6.xlarge"


def test_an_estimate_is_images_over_speed_plus_the_start() -> None:
    (one,) = catalog.estimate("finetune", ["g5.xlarge"], {"g5.xlarge": 1.0}, epochs=10)
    assert one.hours == pytest.approx(catalog.START_HOURS + 10 * catalog.IMAGENET_IMAGES / 811 / 3600)
    assert one.usd == pytest.approx(one.hours)


def test_expensive_types_are_offered_only_to_reach_enough_pools() -> None:
    ordered = catalog.estimate("finetune", GPU_TYPES.split(","), PRICES)
    five, three, one = ([one.type for one in catalog.offered(ordered, zones)] for zones in (5, 3, 1))
    assert five == ["g5.xlarge", "g5.2xlarge", "g6e.xlarge"]  # 15 pools
    assert three == [*five, "g6e.2xlarge"]  # 12 pools
    assert one == [one.type for one in ordered]


def test_the_cheapest_machine_per_hour_is_not_offered_where_its_images_are_dear() -> None:
    ordered = catalog.estimate("finetune", GPU_TYPES.split(","), PRICES)
    cheapest_hour = min(ordered, key=lambda one: one.usd_per_hour).type
    assert cheapest_hour not in [one.type for one in catalog.offered(ordered, 3)]


@pytest.mark.parametrize(
    ("type", "market", "code"),
    [
        ("g5.xlarge", "spot", "L-3819A6DF"), ("gr6.4xlarge", "on-demand", "L-DB2E81BA"),
        ("p4d.24xlarge", "spot", "L-7212CCBC"), ("p5.4xlarge", "spot", "L-C4BD4855"),
        ("p5.4xlarge", "on-demand", "L-417A185B"), ("c7a.2xlarge", "spot", "L-34B43A08"),
        ("m7i.2xlarge", "on-demand", "L-1216C47A"), ("im4gn.large", "spot", "L-34B43A08"),
    ],
)  # fmt: skip
def test_each_family_has_its_quota_in_each_market(type: str, market: str, code: str) -> None:
    quota = catalog.quota_of(type)
    assert quota
    assert quota.code(market) == code


def test_accelerators_of_other_kinds_count_against_no_quota_of_ours() -> None:
    assert [catalog.quota_of(type) for type in ("inf2.xlarge", "trn1.2xlarge", "dl1.24xlarge")] == [None] * 3


def test_an_unknown_type_and_a_type_without_gpu_are_refused_with_what_to_use() -> None:
    with pytest.raises(UserError, match=r"'g9\.xlarge' is not in the table"):
        catalog.instance_type("g9.xlarge")
    with pytest.raises(UserError, match=r"'p3\.2xlarge' is not in the table"):  # Volta: torch has no kernels for it
        catalog.instance_type("p3.2xlarge")
    with pytest.raises(UserError, match=r"'c7a\.2xlarge' has no GPU: use types of g5"):
        catalog.gpu_types(["g5.xlarge", "c7a.2xlarge"])
