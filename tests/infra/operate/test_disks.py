"""The room for a run's data: types without it are left out, or refused, before a machine bills."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from infra.operate.commands import recipes as command
from infra.operate.commands.recipes import fitting, offers_of
from infra.operate.planning.catalog import instance_type
from infra.operate.planning.disks import RoomError, needed_gib, projected, room_gb, staged_of
from infra.operate.planning.options import Request
from infra.operate.planning.prices import dated_prices
from infra.operate.planning.shown import describe
from infra.operate.planning.work import work_of
from infra.operate.terminal import plain
from tests.emulator.aws import Aws
from tests.infra.deployed import Deployed
from tests.infra.operate.launches import plan
from tests.infra.operator import fixes, operate, rows
from trainer.contract import UserError

pytestmark = pytest.mark.usefixtures("served")
SIZES = {"train": {480: 138, 256: 36, 128: 11}, "val": {480: 6, 320: 2}}  # gigabytes
MIXED = "g5.xlarge,g7.2xlarge,g6.xlarge"
THRIFT = "training images with 128 256 480 px, validation images with 320 px"


@pytest.fixture
def prepared(place: Deployed) -> Deployed:
    """ImageNet in the bucket, with all sizes that `make prepare` stores."""
    put(place, SIZES)
    return place


def put(place: Deployed, sizes: dict[str, dict[int, int]]) -> None:
    splits = {
        split: {"images": 1_281_167 if split == "train" else 50_000, "sizes": [size(*one) for one in found.items()]}
        for split, found in sizes.items()
    }
    place.put("datasets/imagenet-1k/v1/index.json", {"splits": splits})


def size(side: int, gb: int) -> dict[str, Any]:
    shards = [{"file": "a.arrow", "images": 1, "bytes": gb * 10**9 // 2, "crc32": 1}] * 2
    return {"short_side": side, "quality": 90, "shards": shards}


def test_a_type_without_room_is_left_out_and_the_offer_says_why(prepared: Deployed) -> None:
    planned = plan(Request(recipe="thrift"), instance_types=MIXED)
    assert {one.type for one in planned.offered} == {"g5.xlarge", "g6.xlarge"}
    said = " ".join(plain(describe(planned)).split())
    assert "left out g7.2xlarge (29 GB of 120 GiB, as its NVMe is unknown or it has none)" in said
    assert f"no room for 187 GB: {THRIFT}" in said


def test_only_sizes_that_are_staged_count(prepared: Deployed) -> None:
    assert "g7.2xlarge" in {
        one.type for one in plan(Request(recipe="finetune"), instance_types=MIXED, disk_gib="135").offered
    }  # 36 + 2 GB
    with pytest.raises(RoomError, match="38 GB: training images with 256 px, validation images with 320 px"):
        plan(Request(recipe="finetune", types=("g7.2xlarge",)))
    one_copy = Request(recipe="thrift", types=("g7.2xlarge",), arguments=("--data.no-copy-per-crop",))
    with pytest.raises(RoomError, match="49 GB: training images with 128 256 px, validation images with 320 px"):
        plan(one_copy)
    assert plan(one_copy, disk_gib="145").left_out == ""


def test_the_copy_of_an_estimate_is_what_is_staged(prepared: Deployed) -> None:
    hours = [plan(Request(recipe=name)).offered[0].of_hours.copy for name in ("finetune", "thrift")]
    assert hours[1] == pytest.approx(187 / 38 * hours[0])


def test_a_type_that_was_asked_for_is_refused_with_numbers_rule_and_fix(prepared: Deployed) -> None:
    with pytest.raises(UserError) as refused:
        plan(Request(recipe="thrift", types=("g7.2xlarge", "g5.xlarge")))
    assert str(refused.value) == (
        "g7.2xlarge (29 GB of 120 GiB, as its NVMe is unknown or it has none): the scratch disk must hold what thrift "
        f"keeps on the machine, 187 GB: {THRIFT}; use TYPES=g5.xlarge,g5.2xlarge,g5.4xlarge, or "
        '"resnet-spot:disk_gib": "279" in cdk.json and `make deploy`, or ARGS="--data.no-copy-per-crop", with which '
        "small crops are less sharp"
    )
    assert plan(Request(recipe="thrift", types=("g7.2xlarge",)), disk_gib="279").offered


def test_where_no_type_is_left_the_launch_is_refused(prepared: Deployed) -> None:
    with pytest.raises(UserError, match=r"g7\.2xlarge \(29 GB .*: the scratch disk must hold .* 187 GB"):
        plan(Request(recipe="thrift"), instance_types="g7.2xlarge")


def test_data_that_nobody_prepared_counts_with_its_source(place: Deployed) -> None:
    planned = plan(Request(recipe="thrift"))
    assert all(instance_type(one.type).nvme_gb >= 450 for one in planned.offered)
    assert "g5.xlarge (232 GB)" in planned.left_out
    assert "and their source, as for ImageNet, since nobody prepared them" in planned.left_out
    with pytest.raises(UserError, match=r"`make prepare ON=aws` once, .*--data\.train-sides 256 128"):
        plan(Request(recipe="thrift", types=("g5.xlarge",)))
    small = ("--data.train-sides", "256", "128")
    assert plan(Request(recipe="thrift", types=("g5.xlarge",), arguments=small)).offered


def test_preflight_finds_it_with_a_command_as_its_fix(prepared: Deployed, look: Callable[..., str]) -> None:
    assert "too little on g7.2xlarge (29 GB" in rows(look(Request(recipe="thrift"), instance_types=MIXED))["disk"][1]
    said = look(Request(recipe="thrift", types=("g7.2xlarge",)))
    assert "the scratch disk must hold what thrift keeps on the machine, 187 GB" in rows(said)["disk"][1]
    assert fixes(said) == {"disk": "make launch TYPES=g6.xlarge,g6.2xlarge,g6.4xlarge"}
    assert rows(said)["budget"] == ("unknown", "needs a type with room for the data")


def test_digits_fit_everywhere(place: Deployed) -> None:
    assert plan(Request(recipe="digits", types=("g7.2xlarge",))).left_out == ""


def test_options_that_nobody_computes_count_every_stored_side() -> None:
    work = work_of("finetune", ("--data.crop-scale", "0.01", "1"))
    assert work.staged("train", SIZES["train"]) == (128, 256, 480)
    assert work.staged("train", ()) == ()


def test_a_size_scales_what_is_wanted() -> None:
    assert work_of("finetune", ("--size", "112")).staged("train", SIZES["train"]) == (128,)
    assert work_of("finetune", ("--size", "128")).staged("train", SIZES["train"]) == (256,)


def test_the_disk_that_a_refusal_names_is_large_enough_and_no_larger() -> None:
    staged, type = projected(work_of("thrift")), instance_type("g7.2xlarge")
    assert room_gb(type, needed_gib(staged)) >= staged.gb > room_gb(type, needed_gib(staged) - 1)
    assert room_gb(type, 60) == 0


def test_a_dataset_elsewhere_counts_nothing() -> None:
    assert staged_of(work_of("digits"), None).gb == 0


def test_recipes_show_no_type_without_room_and_say_why(
    aws: Aws, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "quick_prices", lambda _, types: dated_prices(types))
    assert operate("recipes", "--recipe", "thrift") == 0
    table, _, rest = capsys.readouterr().out.partition("not shown, as the disk has no room for the prepared data of ")
    assert "g7.2xlarge" not in table
    assert "g5.xlarge" in table
    assert "GB: g7.2xlarge (29 GB of 120 GiB, as its NVMe is unknown or it has none)" in " ".join(rest.split())
    assert operate("recipes", "--json", "--recipe", "thrift") == 0
    (found,) = json.loads(capsys.readouterr().out)["recipes"]
    assert [one["type"] for one in found["types"] if not one["has_room"]] == ["g7.2xlarge"]


def test_a_larger_disk_brings_the_type_back() -> None:
    work, types = work_of("mild"), ["g7.2xlarge", "g5.xlarge"]
    offers = offers_of(work, types, dated_prices(types), 0.0)
    assert len(fitting(work, offers, 400)) == 2
    assert [one.estimate.type for one in fitting(work, offers, 120)] == ["g5.xlarge"]
