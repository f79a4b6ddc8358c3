"""preflight of a run: the token and the hub's gate, the data, the disk, the budget, another run."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from infra.operate.planning.options import Request
from tests.emulator.aws import Aws
from tests.infra import deployed, hub
from tests.infra.deployed import Deployed
from tests.infra.hub import Hub
from tests.infra.operate.launches import plan
from tests.infra.operator import fixes, infra, prepare_account, put_token, rows
from trainer.contract import UserError, run_key

pytestmark = pytest.mark.usefixtures("served")


def test_a_gate_that_is_closed_for_the_token_names_the_page_to_accept(
    ready: Aws, look: Callable[..., str], served: Hub
) -> None:
    served.accepted.clear()
    assert fixes(look())["gate of the hub"] == f"open {served.endpoint}/datasets/{hub.IMAGENET}"


def test_a_token_that_the_hub_does_not_know_is_told(ready: Aws, look: Callable[..., str]) -> None:
    put_token(ready, "hf_somethingelse0123456789")
    said = look()
    assert rows(said)["gate of the hub"][1] == "the hub does not know this token"
    assert fixes(said)["gate of the hub"] == "make secret"


def test_open_data_needs_no_token(aws: Aws, look: Callable[..., str]) -> None:
    prepare_account(aws)
    deployed.deploy(aws)
    found = rows(look(Request(data=hub.OPEN)))
    assert found["token"] == ("not needed", f"{hub.OPEN} is open to everybody")
    assert found["gate of the hub"][0] == "ok"


def test_a_hub_that_cannot_be_reached_fails_nothing(
    ready: Aws, look: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert rows(look())["gate of the hub"][0] == "unknown"


def test_the_token_is_never_shown(ready: Aws) -> None:
    ended = infra("preflight")
    assert hub.TOKEN not in ended.said + ended.error


def test_prepared_data_in_the_bucket_is_found_and_needs_no_hub(installed: Aws, look: Callable[..., str]) -> None:
    put_dataset(installed)
    found = rows(look())
    assert "imagenet-1k/256-128px, 1,281,167 images, 37 GB" in found["data"][1]
    assert found["token"][0] == "not needed"


def put_dataset(aws: Aws) -> str:
    (bucket,) = [one["Name"] for one in aws.client("s3").list_buckets()["Buckets"]]
    shard = {"file": "a.arrow", "images": 1281167, "bytes": 37_000_000_000, "crc32": 1}
    sizes = [{"short_side": 256, "quality": 90, "shards": [shard]}]
    index = {"splits": {"train": {"images": 1281167, "sizes": sizes}, "val": {"images": 0, "sizes": []}}}
    key = "datasets/imagenet-1k/256-128px/index.json"
    aws.client("s3").put_object(Bucket=bucket, Key=key, Body=json.dumps(index).encode())
    return f"s3://{bucket}/{key.removesuffix('/index.json')}"


def test_an_address_in_the_bucket_without_a_dataset_is_a_failure(installed: Aws, look: Callable[..., str]) -> None:
    (bucket,) = [one["Name"] for one in installed.client("s3").list_buckets()["Buckets"]]
    said = look(Request(data=f"s3://{bucket}/datasets/imagenet-1k/v0"))
    assert "no index.json" in rows(said)["data"][1]
    assert fixes(said)["data"] == "make prepare ON=aws"


def test_a_volume_too_small_for_image_and_data_is_told(ready: Aws, look: Callable[..., str]) -> None:
    assert "no room for the AMI" in rows(look(disk_gib="60"))["disk"][1]
    said = look(Request(types=("g4dn.xlarge",), arguments=("--precision", "fp16")))
    assert rows(said)["disk"][1].startswith(
        "g4dn.xlarge (116 GB): the scratch disk must hold what finetune keeps on the machine, 200 GB: training images"
    )


def test_another_run_is_told_with_how_to_stop_it(installed: Aws, look: Callable[..., str]) -> None:
    deployed.Deployed(installed).launch("other")
    said = look()
    assert "the run other is active" in rows(said)["other runs"][1]
    assert fixes(said)["other runs"] == "make stop"


def test_a_budget_below_the_estimate_is_told_with_one_that_is_enough(ready: Aws, look: Callable[..., str]) -> None:
    said = look(Request(budget_usd=1.0))
    assert rows(said)["budget"][1].startswith("BUDGET=1 is below the estimate of $6.02")
    assert fixes(said)["budget"] == "make launch BUDGET=8"


def test_the_precision_of_a_run_that_exists_is_that_of_its_spec(place: Deployed, look: Callable[..., str]) -> None:
    for run_id, recipe in (("in-fp32", "digits"), ("in-bf16", "finetune")):
        place.put(run_key(run_id, "spec.json"), plan(Request(run_id=run_id, recipe=recipe)).spec.to_json())
    fp32, bf16 = (rows(look(Request(run_id=name, types=("g4dn.xlarge",)))) for name in ("in-fp32", "in-bf16"))
    assert fp32["budget"][0] == "ok"
    assert bf16["budget"][0] == "failed"
    assert "g4dn.xlarge cannot compute in bf16" in bf16["budget"][1]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(recipe="resnet51"), r"recipe 'resnet51' is unknown: choose one of digits, finetune"),
        (Request(types=("c7a.2xlarge",)), r"'c7a\.2xlarge' has no GPU"),
        (Request(types=("g4dn.xlarge",)), r"g4dn\.xlarge cannot compute in bf16"),
        (Request(data="/home/me/images"), r"DATA='/home/me/images' is not known to a machine on AWS"),
        (Request(hours=1000.0), r"HOURS=1000 is out of range"),
        (Request(market="reserved"), r"MARKET='reserved' is unknown"),
        (Request(run_id="My Run"), r"RUN='My Run' is not a run id"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anybody_is_asked(
    aws: Aws, look: Callable[..., str], request_: Request, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        look(request_)
    assert aws.calls() == []
