"""Hours and dollars: the sum of start, copy, compiling, stages and validation, and the order of the types."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from infra.config import GPU_TYPES
from infra.operate.planning import estimate as model
from infra.operate.planning.catalog import TYPES
from infra.operate.planning.estimate import Estimate, data_of, offered, stored_gb
from infra.operate.planning.scaling import estimate
from infra.operate.planning.speeds import val_speed
from infra.operate.planning.work import IMAGENET, Work
from tests import ROOT
from tests.infra.operate.works import PRICES, work


def on(name: str, what: Work) -> Estimate:
    (one,) = estimate(what, [name], {name: 1.0})
    return one


def test_types_are_ordered_by_dollars_per_image_and_not_per_hour() -> None:
    ordered = estimate(work(), GPU_TYPES.split(","), PRICES)
    costs = [one.usd_per_million_images for one in ordered]
    assert costs == sorted(costs)
    cheapest_hour = min(ordered, key=lambda one: one.usd_per_hour)
    assert ordered[0].type == "g5.xlarge"
    assert cheapest_hour.type == "g6.xlarge"


def test_an_estimate_is_images_over_speed_plus_start_copy_and_validation() -> None:
    ten = work((224, 10))
    one = on("g5.xlarge", ten)
    hours = one.of_hours
    assert hours.train == pytest.approx(10 * IMAGENET.train / 811 / 3600)
    assert hours.start == pytest.approx(model.START_SECONDS / 3600)
    assert hours.copy == pytest.approx(stored_gb((256, 128)) / model.COPY_GB_PER_SECOND / 3600)
    assert hours.validate == pytest.approx(10 * IMAGENET.val / val_speed(TYPES["g5.xlarge"], ten) / 3600)
    assert hours.compile == hours.prepare == 0
    assert one.hours == pytest.approx(hours.start + hours.copy + hours.train + hours.validate)
    assert one.usd == pytest.approx(one.hours)
    (dearer,) = estimate(ten, ["g5.xlarge"], {"g5.xlarge": 1.0}, extras_usd_per_hour=0.1)
    assert dearer.usd == pytest.approx(1.1 * one.hours)


def test_small_images_take_the_share_of_their_area_where_the_loader_feeds_them() -> None:
    whole, half = on("g5.xlarge", work((224, 8))), on("g5.xlarge", work((112, 8)))
    assert half.of_hours.train == pytest.approx(whole.of_hours.train / 4)
    both = on("g5.xlarge", work((112, 8), (224, 8)))
    assert both.of_hours.train == pytest.approx(whole.of_hours.train + half.of_hours.train)
    assert [stage.pixels for stage in both.stages] == [112, 224]


def test_where_the_cpus_do_not_feed_the_gpu_they_decide() -> None:
    large = work((176, 8), train_sides=(480,), compile=True)
    (four,), (eight,) = (on(f"g6e.{size}xlarge", large).stages for size in ("", 2))
    assert four.wanted == eight.wanted > four.fed
    assert four.images_per_second == four.fed == pytest.approx(eight.fed / 2)
    assert eight.images_per_second == eight.wanted


def test_compiling_costs_for_each_size_and_makes_training_faster() -> None:
    ramp = work((112, 8), (160, 1), (224, 8))
    eager, compiled = on("g5.xlarge", ramp), on("g5.xlarge", replace(ramp, compile=True))
    assert compiled.of_hours.compile == pytest.approx(3 * model.COMPILE_SECONDS / 3600)
    assert eager.of_hours.compile == 0
    assert compiled.of_hours.train < 0.8 * eager.of_hours.train


def test_a_validation_counts_as_often_as_it_is_made() -> None:
    each, seldom = on("g5.xlarge", work()), on("g5.xlarge", work(val_every_epochs=5))
    assert seldom.of_hours.validate == pytest.approx(4 / 16 * each.of_hours.validate)  # after 5, 10, 15 and 16


def test_data_that_is_not_prepared_costs_its_preparation() -> None:
    found = replace(data_of(work()), is_prepared=False)
    (one,) = estimate(work(), ["g5.xlarge"], PRICES, found)
    assert one.of_hours.prepare == pytest.approx(150 / 180)  # the download; the vCPUs are faster
    assert one.hours > on("g5.xlarge", work()).hours + 0.8


def test_what_is_stored_is_what_was_measured_and_between_those_it_goes_by_area() -> None:
    measured = json.loads((ROOT / "benchmarks/results/copies.json").read_text())
    sizes = {int(side): gb for copies in measured["imagenet_gb"].values() for side, gb in copies.items()}
    assert {side: pytest.approx(gb, rel=0.03) for side, gb in sizes.items()} == model.COPY_GB
    assert stored_gb((128,)) < stored_gb((192,)) < stored_gb((256,)) < stored_gb((288,)) < stored_gb((320,))
    assert stored_gb((2048,)) == stored_gb((4096,))  # no original is enlarged
    assert stored_gb((64,)) == pytest.approx(model.VAL_GB + 10.9 / 4)


def test_expensive_types_are_offered_only_to_reach_enough_pools() -> None:
    ordered = estimate(work(), GPU_TYPES.split(","), PRICES)
    five, three, one = ([one.type for one in offered(ordered, zones)] for zones in (5, 3, 1))
    assert five == ["g5.xlarge", "g5.2xlarge", "g6e.xlarge"]  # 15 pools
    assert three == [*five, "g6e.2xlarge"]  # 12 pools
    assert one == [one.type for one in ordered]


def test_the_cheapest_machine_per_hour_is_not_offered_where_its_images_are_dear() -> None:
    ordered = estimate(work(), GPU_TYPES.split(","), PRICES)
    cheapest_hour = min(ordered, key=lambda one: one.usd_per_hour).type
    assert cheapest_hour not in [one.type for one in offered(ordered, 3)]
