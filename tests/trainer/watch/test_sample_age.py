"""How old the figures of a machine are: the page tells it where they are not of now."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.watch.stored_runs import NOW, pulse_of, put_json, put_running
from trainer.contract import run_key
from trainer.live.condition import condition_of
from trainer.live.reading import read_live
from trainer.store import ObjectStore, open_store
from trainer.telemetry.samples import samples_key
from trainer.watch.shown import shown_document


@pytest.fixture
def folder(tmp_path: Path) -> ObjectStore:
    (tmp_path / "out").mkdir()
    return open_store(str(tmp_path / "out"))


def told_of(store: ObjectStore) -> dict[str, Any]:
    live = read_live(store, "digits", NOW)
    return shown_document(live, condition_of(live.facts, NOW, 0.0), NOW)


def test_a_sample_that_is_not_of_now_has_its_age(folder: ObjectStore) -> None:
    put_running(folder, "digits")
    for age, text in ((9, "87 % busy"), (150, "87 % busy, 2 min 30 s ago")):
        sample = {"gpu/utilization": 0.87, "time": NOW - age}
        put_json(folder, run_key("digits", "heartbeat.json"), pulse_of(observed={"sample": sample, "alerts": []}))
        assert ["GPU", text] in told_of(folder)["figures"]


def test_of_an_observer_that_has_died_the_stored_samples_are_shown_with_their_age_and_its_alerts_once(
    folder: ObjectStore,
) -> None:
    put_running(folder, "digits")
    alert = {"step": 2, "time": NOW - 90, "kind": "throttled", "level": "warning", "text": "hot"}
    put_json(folder, run_key("digits", "heartbeat.json"), pulse_of(observed={"alerts": [alert]}))
    lines = [{"step": 2, "time": NOW - 120, "phase": "training", "gpu/utilization": 0.5}, alert | {"event": "alert"}]
    folder.put(samples_key("digits", 1, 7), "".join(json.dumps(line) + "\n" for line in lines).encode())
    told = told_of(folder)
    assert ["GPU", "50 % busy, 2 min 0 s ago"] in told["figures"]
    assert told["wrong"] == ["1 min 30 s ago: hot"]
