"""`make runs STORE=…`: every run of a store, in a table or as JSON."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.watch.stored_runs import (
    NOW,
    pulse_of,
    put_finished,
    put_json,
    put_running,
)
from trainer.contract import Exit, run_key
from trainer.live.facts import read_facts
from trainer.runs import cells_of, document_of, list_runs, main
from trainer.store import ObjectStore, StoreError, open_store
from trainer.store.directory import DirectoryStore
from trainer.values import parse_object


def watched_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of all objects that are read, or asked for, from here on."""
    asked, get = list[str](), DirectoryStore.get

    def counted(store: DirectoryStore, key: str) -> bytes:
        asked.append(key)
        return get(store, key)

    monkeypatch.setattr(DirectoryStore, "get", counted)
    return asked


HOSTILE = "<script>alert(1)</script>\x1b[2J"


@pytest.fixture(autouse=True)
def at_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.runs.time.time", lambda: NOW)
    monkeypatch.delenv("TRAINER_STORE", raising=False)


def put_some(store: ObjectStore) -> None:
    put_finished(store, "first", started=NOW - 90_000)
    put_running(store, "second")
    put_finished(store, "third", started=NOW - 1000, top1=0.5, machine={"type": "g6.xlarge"})
    put_json(store, run_key("third", "spend.json"), {"usd": 1234.5})
    store.put("runs/Not-A-Run/x.json", b"{}")
    store.put("runs/note.txt", b"mine")


def test_all_runs_stand_in_one_table_the_newest_first(store: ObjectStore, capsys: pytest.CaptureFixture[str]) -> None:
    put_some(store)
    assert main(["--store", store.uri]) == Exit.FINISHED
    table, _, hint = capsys.readouterr().out.partition("\n\n")
    assert table.splitlines() == [
        "run     state      step    top-1    dollars          age",
        "third   finished  5,000  50.00 %  $1,234.50  16 min 40 s",
        "second  training  1,240  76.10 %               1 h 0 min",
        "first   finished  5,000  98.77 %                 1 d 1 h",
    ]
    assert hint == f"make watch STORE={store.uri} RUN=third   shows one of them as it runs\n"


def test_json_has_the_fields_of_the_runs_on_aws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put_some(store := open_store(str(tmp_path)))
    assert main(["--store", store.uri, "--json"]) == Exit.FINISHED
    told = json.loads(capsys.readouterr().out)
    assert told["store"] == store.uri
    runs = {run["run"]: run for run in told["runs"]}
    assert [run["state"] for run in told["runs"]] == ["finished", "running", "finished"]
    second = runs["second"]
    shown: dict[str, Any] = {"phase": "training", "step": 1240, "top1": 0.761, "usd": None, "attempts": 1}
    assert shown.items() <= second.items()
    assert second["age_seconds"] == pytest.approx(3600)
    assert runs["third"]["usd"] == 1234.5
    fields = {"run", "kind", "recipe", "state", "message", "phase", "step", "total_steps", "top1", "usd", "budget_usd"}
    fields |= {"launched", "age_seconds"}
    assert all(fields <= run.keys() for run in told["runs"])


@pytest.mark.parametrize("machine", [{}, {"type": "g6.xlarge", "zone": "us-east-1b"}])
@pytest.mark.parametrize("attempts", [1, 3])
def test_a_finished_run_is_one_object_and_on_aws_its_dollars_another_but_an_older_one_has_the_same_row(
    tmp_path: Path, attempts: int, machine: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older version wrote no copies into done.json, and before that the record of another attempt than the first."""
    store = open_store(str(tmp_path))
    for name, copies in (("run", True), ("old", False)):
        put_finished(store, name, copies=copies, attempts=attempts, machine=machine)
        put_json(store, run_key(name, "spend.json"), {"usd": 12.5})
    asked = watched_reads(monkeypatch)
    (old, run) = sorted(list_runs(store, NOW), key=lambda found: found.run_id)
    files = ["done.json", "spend.json"] if machine else ["done.json"]
    assert [key for key in asked if "/run/" in key] == [run_key("run", file) for file in files]
    assert len([key for key in asked if "/old/" in key]) > len(files)
    assert run.facts is not None
    assert old.facts is not None
    assert run.facts == replace(old.facts, run_id="run")
    assert cells_of(run, NOW)[1:] == cells_of(old, NOW)[1:]
    assert document_of(run, NOW) == document_of(old, NOW) | {"run": "run"}
    assert run.facts.money.spent == (12.5 if machine else None)


@pytest.mark.parametrize("damage", [{"result": []}, {"result": {"steps": -1}}, {"first": 3}, {"started": "noon"}])
def test_a_damaged_copy_is_told_and_the_files_themselves_are_read(tmp_path: Path, damage: dict[str, Any]) -> None:
    put_finished(store := open_store(str(tmp_path)), "run", attempts=3)
    whole = read_facts(store, "run")
    put_json(store, run_key("run", "done.json"), parse_object(store.get(run_key("run", "done.json"))) | damage)
    found = read_facts(store, "run")
    assert replace(found, skipped=()) == whole
    assert "runs/run/done.json is not what a run writes" in found.skipped[0]


def test_damaged_and_hostile_runs_hide_no_other_and_steer_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_running(store := open_store(str(tmp_path)), "good")
    store.put(run_key("damaged", "result.json"), b"{")
    put_json(store, run_key("hostile", "heartbeat.json"), pulse_of(phase=HOSTILE))
    (tmp_path / "runs" / "empty").mkdir()
    assert main(["--store", store.uri]) == Exit.FINISHED
    out, err = capsys.readouterr()
    words = {line.split()[0]: line.split()[1] for line in out.splitlines()[1:5]}
    assert words.keys() == {"good", "damaged", "hostile", "empty"}
    assert (words["good"], words["empty"]) == ("training", "missing")
    assert "\x1b" not in out
    assert "damaged: runs/damaged/result.json is not what a run writes" in err


def test_a_run_that_may_not_be_read_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put_running(store := open_store(str(tmp_path)), "good")
    put_running(store, "closed")
    get = DirectoryStore.get

    def refusing(store: DirectoryStore, key: str) -> bytes:
        if "closed" in key:
            raise StoreError("Permission denied", "EACCES")
        return get(store, key)

    monkeypatch.setattr(DirectoryStore, "get", refusing)
    assert main(["--store", store.uri]) == Exit.FINISHED
    out, err = capsys.readouterr()
    assert re.search("^closed +unreadable$", out, re.MULTILINE)
    assert re.search("^good +training", out, re.MULTILINE)
    assert "closed: Permission denied" in err


def test_an_empty_store_and_none_at_all_say_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--store", str(tmp_path)]) == Exit.FINISHED
    assert "there is no run in" in capsys.readouterr().out
    assert main(["--store", str(tmp_path / "nowhere")]) == Exit.USER
    assert "there is no store" in capsys.readouterr().err
    assert main(["--store", "http://x"]) == Exit.USER
