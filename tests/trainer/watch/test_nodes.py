"""A run of several machines on the page: a row for each, and how many of them train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.trainer.watch.stored_runs import NOW, pulse_of, put_json, put_running
from trainer.contract import run_key
from trainer.live.condition import condition_of
from trainer.live.reading import read_live
from trainer.store import ObjectStore, open_store
from trainer.watch.kept import KeptStore
from trainer.watch.shown import shown_document


@pytest.fixture
def folder(tmp_path: Path) -> ObjectStore:
    (tmp_path / "out").mkdir()
    return open_store(str(tmp_path / "out"))


def told_of(store: ObjectStore) -> tuple[dict[str, str], list[str]]:
    live = read_live(store, "digits", NOW)
    document = shown_document(live, condition_of(live.facts, NOW, 0.0), NOW)
    return dict(document["figures"]), document["wrong"]


def put_node(store: ObjectStore, name: str, role: str = "member", ago: float = 12.0, **values: Any) -> None:
    record = {"node": name, "role": role, "attempt": 2, "time": NOW - ago, "phase": "training", "step": 1234,
              "processes": 4, "address": "10.0.0.7", "machine": {}, "message": ""}  # fmt: skip
    put_json(store, run_key("digits", f"nodes/{name}.json"), record | values)


def put_team(store: ObjectStore) -> None:
    put_running(store, "digits")
    put_json(store, run_key("digits", "heartbeat.json"), pulse_of(nodes=2))
    put_node(store, "left", "member", machine={"type": "g6.xlarge", "gpu": "1 x NVIDIA L4"})
    put_node(store, "right", "head")


def test_each_machine_has_a_row_and_the_head_comes_first(folder: ObjectStore) -> None:
    put_team(folder)
    put_node(folder, "gone", ago=1000.0)
    put_node(folder, "third", ended=NOW - 5, message="told to stop", attempt=1, processes=1)
    figures, wrong = told_of(folder)
    assert wrong == []
    assert figures["nodes"] == "2 of 2"
    rows = {label: text for label, text in figures.items() if label.startswith(("node ", "head "))}
    assert rows == {
        "head right": "training, step 1,234, attempt 2, 4 processes, heard 12 s ago, 10.0.0.7",
        "node left": "training, step 1,234, attempt 2, 4 processes, heard 12 s ago, g6.xlarge, 1 x NVIDIA L4",
        "node third": "training, step 1,234, attempt 1, ended: told to stop, 10.0.0.7",
    }
    assert next(iter(rows)) == "head right"


def test_the_spec_says_how_many_machines_are_wanted(folder: ObjectStore) -> None:
    put_team(folder)
    put_json(folder, run_key("digits", "spec.json"), {"recipe": "digits", "nodes": 4})
    assert told_of(folder)[0]["nodes"] == "2 of 4"


def test_a_run_of_one_machine_reads_no_records_and_has_no_rows(folder: ObjectStore) -> None:
    put_running(folder, "digits")
    put_node(folder, "left")
    figures, _ = told_of(folder)
    assert "nodes" not in figures
    assert not [label for label in figures if label.startswith(("node ", "head "))]


@pytest.mark.parametrize("values", [{"step": -1}, {"machine": "big"}, {"time": "now"}, {"message": 7}])
def test_a_record_that_no_machine_writes_is_told_and_the_others_are_shown(
    folder: ObjectStore, values: dict[str, Any]
) -> None:
    put_team(folder)
    put_node(folder, "left", **values)
    figures, wrong = told_of(folder)
    assert "head right" in figures
    assert "node left" not in figures
    assert [line for line in wrong if line.startswith("runs/digits/nodes/left.json is not what a run writes")]


def test_a_page_that_stays_open_reads_a_record_again_only_where_it_has_changed(folder: ObjectStore) -> None:
    put_team(folder)
    read, get = list[str](), folder.get

    class Counted:
        def __getattr__(self, name: str) -> Any:
            return getattr(folder, name)

        def get(self, key: str) -> bytes:
            read.append(key)
            return get(key)

    kept = KeptStore.around(Counted())
    for _ in range(2):
        told_of(kept)
    put_node(folder, "left", step=1300)
    figures, _ = told_of(kept)
    assert "step 1,300" in figures["node left"]
    assert [read.count(run_key("digits", f"nodes/{name}.json")) for name in ("left", "right")] == [2, 1]
