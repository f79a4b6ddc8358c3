"""`make runs` of the installation reads little of each run, and the same of one that an older version wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from infra.operate.runs import DatedBody, ExplainedBucket, ListedObject
from tests.infra.deployed import Deployed
from tests.infra.operator import operate
from trainer.contract import checkpoint_key, manifest_key, run_key

RESULT = {
    "steps": 1000, "epochs": 10, "steps_per_epoch": 100,
    "last": {"val/top1": 0.61, "val_ema/top1": 0.625}, "best": {"top1": 0.63, "step": 900, "weights": "ema"},
}  # fmt: skip


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys that are read, and the prefixes that are listed."""
    found, get, list_keys = list[str](), ExplainedBucket.get, ExplainedBucket.list

    def counted_get(bucket: ExplainedBucket, key: str, *most: int) -> DatedBody | None:
        found.append(key)
        return get(bucket, key, *most)

    def counted_list(bucket: ExplainedBucket, prefix: str, *a: Any, **b: Any) -> Iterator[ListedObject]:
        found.append(prefix)
        return list_keys(bucket, prefix, *a, **b)

    monkeypatch.setattr(ExplainedBucket, "get", counted_get)
    monkeypatch.setattr(ExplainedBucket, "list", counted_list)
    return found


def rows(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    """What --json tells of each run, without what differs between two runs of the same kind."""
    capsys.readouterr()
    operate("runs", "--json")
    found = json.loads(capsys.readouterr().out)["runs"]
    return {
        one.pop("run"): {name: value for name, value in one.items() if name not in ("launched", "age_seconds")}
        for one in found
    }


def test_a_done_run_is_three_objects_and_one_of_an_older_version_has_the_same_row(
    deployed: Deployed, capsys: pytest.CaptureFixture[str], asked: list[str]
) -> None:
    for name in ("new", "old"):
        deployed.launch(name)
        deployed.put(run_key(name, "result.json"), RESULT)
        end = {"attempt": 1, "message": "1000 steps are done", "ended": 1.8e9}
        deployed.put(run_key(name, "done.json"), end | ({"result": RESULT} if name == "new" else {}))
    deployed.spend(2, 0.4, run_id="new")
    deployed.spend(2, 0.4, run_id="old")
    found = rows(capsys)
    wanted = {"state": "done", "step": 1000, "total_steps": 1000, "top1": 0.63, "kind": "train", "budget_usd": 10}
    assert wanted.items() <= found["new"].items()
    assert found["new"].pop("usd") == pytest.approx(found["old"].pop("usd"), abs=0.01)
    assert found["new"] == found["old"]
    assert {key for key in asked if "/new/" in key} == {
        run_key("new", name) for name in ("spec.json", "done.json", "spend.json")
    }
    assert run_key("old", "result.json") in asked


def test_no_metrics_are_read_of_a_run_whose_checkpoint_tells_its_steps_and_an_older_one_has_the_same_row(
    deployed: Deployed, capsys: pytest.CaptureFixture[str], asked: list[str]
) -> None:
    for name in ("new", "old"):
        deployed.launch(name)
        deployed.train_to(350, run_id=name)
        operate("stop")
    manifest = manifest_key("old", 350, 1)
    deployed.put(manifest, {"step": 350, "time": 1.8e9, "counters": {
        "step": 350, "validated": 300, "best": {"top1": 0.63, "step": 200, "weights": "ema"},
    }})  # fmt: skip
    asked.clear()
    found = rows(capsys)
    wanted = {"state": "stopped", "step": 350, "total_steps": 1000, "top1": 0.63, "phase": "training"}
    assert wanted.items() <= found["new"].items()
    assert found["new"] == found["old"]
    names = ("spec.json", "done.json", "failed.json", "spend.json", "guard.json", "heartbeat.json")
    parts = {checkpoint_key("new", "HEAD.json"), manifest_key("new", 350, 1)}
    assert {key for key in asked if "/new/" in key} == {run_key("new", name) for name in names} | parts
    assert any("metrics/" in key for key in asked if "/old/" in key)


@pytest.mark.parametrize("damage", [[], {"steps": -1}, {"epochs": "ten"}, 3])
def test_a_damaged_copy_of_the_result_is_not_believed(
    deployed: Deployed, capsys: pytest.CaptureFixture[str], damage: object
) -> None:
    deployed.launch("run")
    deployed.put(run_key("run", "result.json"), RESULT)
    deployed.put(run_key("run", "done.json"), {"message": "done", "result": damage})
    assert (rows(capsys)["run"]["step"], rows(capsys)["run"]["top1"]) == (1000, 0.63)
