"""prepare on AWS: a launch of the CPU group, with its own arguments, limits and price."""

from __future__ import annotations

import shlex

import pytest

from infra.config import Installation
from infra.run import fleet
from infra.run.spec import Spec
from tests.emulator.aws import Aws
from tests.infra import hub
from tests.infra.deployed import Deployed
from tests.infra.fleets import group_state
from tests.infra.operator import infra
from trainer.contract import run_key

pytestmark = pytest.mark.usefixtures("served")
INSTALLATION = Installation()


def test_a_cpu_machine_prepares_the_dataset_into_the_bucket(place: Deployed) -> None:
    ended = infra("prepare", "--args", "--quality 85", "--hours", "3")
    assert ended.code == 0, ended.said + ended.error
    group = group_state(place.aws.client("autoscaling"), INSTALLATION.prepare_group)
    assert (group.desired, group.types[0]) == (1, "c6a.2xlarge")
    assert group.run_id.startswith("prepare-imagenet-1k-")
    body = place.aws.client("s3").get_object(Bucket=place.bucket, Key=run_key(group.run_id, "spec.json"))["Body"].read()
    spec = Spec.from_json(body)
    wanted = f"--data {hub.IMAGENET} --store s3://{place.bucket} --quality 85"
    assert (spec.kind, spec.arguments) == ("prepare", tuple(shlex.split(wanted)))
    assert (spec.hours, spec.data) == (3.0, hub.IMAGENET)
    assert "dollars" in ended.said
    assert "50 MB/s of download, an assumption" in ended.said
    assert f"make status RUN={group.run_id}" in ended.said
    training = group_state(place.aws.client("autoscaling"), INSTALLATION.train_group)
    assert training.desired == 0


def test_an_interrupted_preparation_goes_on_under_its_name(place: Deployed) -> None:
    assert infra("prepare", "--run", "prepare-x").code == 0
    fleet.scale_to_zero(place.aws.client("autoscaling"), INSTALLATION.prepare_group)
    ended = infra("prepare", "--run", "prepare-x", "--hours", "4")
    assert ended.code == 0, ended.said + ended.error
    assert "goes on: prepare-x" in ended.said


def test_what_is_prepared_is_not_prepared_again_unless_asked_for(place: Deployed) -> None:
    shards = [{"file": "a.arrow", "images": 10, "bytes": 2_000_000_000, "crc32": 1}]
    sizes = [{"short_side": 256, "quality": 90, "shards": shards}]
    splits = {"train": {"images": 10, "sizes": sizes}, "val": {"images": 0, "sizes": []}}
    place.put("datasets/imagenet-1k/v1/index.json", {"splits": splits})
    ended = infra("prepare")
    assert ended.code == 0
    assert f"is prepared: s3://{place.bucket}/datasets/imagenet-1k/v1, 10 images, 2.0 GB" in ended.said
    assert infra("prepare", "--again", "--run", "prepare-again").code == 0


def test_of_a_commit_that_is_named_only_what_was_prepared_from_it_counts(place: Deployed) -> None:
    first, second = "1" * 40, "2" * 40
    splits = {"train": {"images": 10, "sizes": []}, "val": {"images": 0, "sizes": []}}
    for version, commit in (("v1", first), ("v2", second)):
        place.put(f"datasets/imagenet-1k/{version}/index.json", {"splits": splits, "source": {"commit": commit}})
    for commit, version in ((first, "v1"), (second, "v2")):
        assert (
            f"/datasets/imagenet-1k/{version}, 10 images" in infra("prepare", "--data", f"{hub.IMAGENET}@{commit}").said
        )
    third = infra("prepare", "--data", f"{hub.IMAGENET}@{'3' * 40}", "--run", "prepare-third")
    assert third.code == 0, third.error
    assert "is prepared" not in third.said


@pytest.mark.parametrize("data", ["digits", "/home/me/images", "s3://bucket/images"])
def test_only_a_dataset_of_the_hub_can_be_prepared_there(place: Deployed, data: str) -> None:
    ended = infra("prepare", "--data", data)
    assert ended.code == 2
    assert f"DATA='{data}' is not a Hugging Face id" in ended.error
    assert "make prepare DATA=" in ended.error


def test_without_a_deploy_it_says_so(aws: Aws) -> None:
    ended = infra("prepare")
    assert ended.code == 2
    assert "is not deployed in us-east-1: `make deploy NO_LAUNCH=1` first" in ended.error  # else it trains on a GPU
