"""What is read of a run as it is now, and the word for it. Stores are synthetic: no training runs here."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from tests.hostile import forgeries
from tests.trainer.watch.stored_runs import (
    BEGUN,
    NOW,
    manifest_of,
    pulse_of,
    put_attempt_record,
    put_checkpoint,
    put_finished,
    put_json,
    put_running,
    put_segment,
    rows_of,
)
from trainer.contract import HEAD_FILE, Exit, checkpoint_key, manifest_key, metrics_key, run_key
from trainer.learning.state import State
from trainer.live.condition import condition_of
from trainer.live.reading import Live, read_live
from trainer.store import ObjectStore, open_store
from trainer.telemetry.samples import samples_key
from trainer.watch.shown import shown_document


@pytest.fixture
def folder(tmp_path: Path) -> ObjectStore:
    (tmp_path / "out").mkdir()
    return open_store(str(tmp_path / "out"))


def shown(live: Live, now: float = NOW, unchanged: float = 0.0) -> dict[str, Any]:
    return shown_document(live, condition_of(live.facts, now, unchanged), now)


def word_of(store: ObjectStore, run_id: str = "digits") -> tuple[str, str]:
    condition = condition_of(read_live(store, run_id, NOW).facts, NOW)
    return condition.word, condition.text


def test_a_running_run_shows_all_that_is_known_of_it(store: ObjectStore) -> None:
    put_running(store, "digits")
    told = shown(read_live(store, "digits", NOW))
    assert (told["word"], told["state"], told["wrong"]) == ("running", "training, last heard 12 s ago", [])
    assert told["progress"] == pytest.approx(1240 / 5000)
    figures = dict(told["figures"])
    assert figures["step"] == "1,240 of 5,000 (24.8 %)"
    assert figures["time left"].startswith("6 min, until ")  # 3,760 steps of 256 images at 2,560 images/s
    assert figures["top-1"] == "76.10 % best, step 1,000"
    assert figures["speed"] == "2,560 images/s"
    assert figures["data wait"] == "2.3 %"
    assert figures["GPU"] == "87 % busy, 34.1 GB of 80.0 GB, 311 W, 64 °C"
    assert figures["checkpoint"] == "step 1,200, 34 s old"
    assert figures["attempt"] == "1, on box"
    assert figures["started"] == "1 h 0 min ago"
    assert "dollars" not in figures


def test_only_the_newest_segments_are_read_however_many_there_are(folder: ObjectStore) -> None:
    put_running(folder, "digits")
    asked = list[str]()
    get = folder.get

    def noted(key: str) -> bytes:
        asked.append(key)
        return get(key)

    folder.get = noted  # type: ignore[method-assign]
    read_live(folder, "digits", NOW)
    segments = [key for key in asked if "/metrics/" in key]
    assert segments == [
        metrics_key("digits", 1, f"{name}.jsonl") for name in ("00000621-00001200", "00001201-00001230")
    ]
    assert len(asked) == len(set(asked)) <= 12


@pytest.mark.parametrize(
    ("changes", "word", "said"),
    [
        ({"exit": Exit.INTERRUPTED, "message": "spot notice"}, "interrupted", "all is saved: spot notice; the command"),
        ({"exit": 1, "message": "OOM"}, "crashed", "crashed with exit code 1: OOM; the command that started it"),
        ({"exit": Exit.USER, "message": "a wrong option"}, "stopped", "stopped: a wrong option"),
        ({"exit": Exit.FINISHED, "message": "rewound to step 40"}, "stopped", "stopped: rewound to step 40"),
        ({"exit": Exit.HELD, "message": "another has it"}, "running", "training, last heard 12 s ago"),
    ],
)
def test_how_the_newest_attempt_ended_is_the_state(
    folder: ObjectStore, changes: dict[str, Any], word: str, said: str
) -> None:
    put_running(folder, "digits")
    put_attempt_record(folder, "digits", 1, ended=NOW, **changes)
    found, text = word_of(folder)
    assert found == word
    assert said in text


def test_a_run_is_missing_waiting_starting_silent_failed_or_finished(folder: ObjectStore) -> None:
    assert word_of(folder)[0] == "missing"
    put_json(folder, run_key("digits", "spec.json"), {"recipe": "digits", "budget_usd": 12.0, "created": BEGUN})
    assert word_of(folder) == ("waiting", "no machine has begun to work on it yet")
    put_attempt_record(folder, "digits", 1, started=NOW - 20)
    assert word_of(folder) == ("starting", "starting, last heard 20 s ago")
    put_attempt_record(folder, "digits", 1)
    assert word_of(folder)[0] == "silent"
    put_json(folder, run_key("digits", "heartbeat.json"), pulse_of(NOW - 600))
    word, text = word_of(folder)
    assert word == "silent"
    assert "last heard 10 min 12 s ago while training" in text
    put_json(folder, run_key("digits", "failed.json"), {"attempt": 1, "message": "no such data"})
    assert word_of(folder) == ("failed", "failed: no such data")
    put_attempt_record(folder, "digits", 2, started=NOW - 1)
    assert word_of(folder)[0] == "starting"  # a later attempt: it has not failed
    put_finished(folder, "digits")
    assert word_of(folder) == ("finished", "finished: 5,000 steps in 14 min 40 s")


@pytest.mark.parametrize(
    ("first", "second", "beat", "word", "attempt"),
    [
        ({}, {"started": NOW - 60, "exit": Exit.HELD}, NOW - 12, "running", 1),  # refused
        ({}, {"started": NOW - 60}, NOW - 12, "running", 1),  # it waits
        ({}, {"started": NOW - 600, "exit": Exit.HELD}, NOW - 300, "silent", 1),
        ({"exit": Exit.INTERRUPTED}, {"started": NOW - 60, "exit": Exit.HELD}, NOW - 12, "interrupted", 1),
        ({"exit": Exit.INTERRUPTED}, {"started": NOW - 60}, NOW - 12, "starting", 2),  # its turn has come
        ({}, {"started": NOW - 60}, NOW - 70, "starting", 2),  # the first one was killed
        ({}, {"started": NOW - 60, "exit": 1}, NOW - 12, "crashed", 2),
    ],
)
def test_a_second_start_leaves_the_attempt_that_works_in_sight(
    folder: ObjectStore, first: dict[str, Any], second: dict[str, Any], beat: float, word: str, attempt: int
) -> None:
    put_running(folder, "digits")
    put_attempt_record(folder, "digits", 1, **first)
    put_attempt_record(folder, "digits", 2, **second)
    put_json(folder, run_key("digits", "heartbeat.json"), pulse_of(time=beat))
    live = read_live(folder, "digits", NOW)
    figures = dict(shown(live)["figures"])
    assert (condition_of(live.facts, NOW).word, figures["attempt"][:1]) == (word, str(attempt))
    if word == "running":
        assert (figures["speed"], "time left" in figures) == ("2,560 images/s", True)


def test_a_checkpoint_before_the_first_validation_counts(folder: ObjectStore) -> None:
    put_running(folder, "digits")
    first = next(field.default_factory for field in fields(State) if field.name == "best")
    assert callable(first)
    counters = {"step": 1200, "validated": 0, "scores": {}, "best": first()}
    put_checkpoint(folder, "digits", at=NOW - 200, counters=counters)
    told = shown(read_live(folder, "digits", NOW))
    figures = dict(told["figures"])
    assert (figures["step"], figures["checkpoint"]) == ("1,240 of 5,000 (24.8 %)", "step 1,200, 3 min 20 s old")
    assert "time left" in figures
    assert "top-1" not in figures
    assert told["wrong"] == ["the newest checkpoint is 3 min 20 s old: so much work would be lost now"]


def test_a_clock_that_is_ahead_is_told_and_hides_no_silence(folder: ObjectStore) -> None:
    put_running(folder, "digits", at=NOW + 7200)
    live = read_live(folder, "digits", NOW)
    told = shown(live)
    assert told["word"] == "running"
    assert "the clock of the run's machine is 1 h 59 min ahead of this one: ages are not right" in told["wrong"]
    assert shown(live, unchanged=200.0)["word"] == "silent"


def test_what_is_wrong_stands_first_and_old_or_harmless_alerts_do_not(folder: ObjectStore) -> None:
    put_running(folder, "digits")
    put_checkpoint(folder, "digits", at=NOW - 200)
    alerts = [
        {"id": "1-1", "time": NOW - 2000, "step": 1, "kind": "starved", "level": "warning", "text": "long ago"},
        {"id": "1-2", "time": NOW - 300, "step": 1, "kind": "starved", "level": "warning", "text": "data wait 23 %"},
        {"id": "1-3", "time": NOW - 60, "step": 1, "kind": "best", "level": "info", "text": "a better one"},
        {"id": "1-4", "time": NOW - 30, "step": 1, "kind": "disk-full", "level": "error", "text": "disk full"},
    ]
    body = pulse_of(observed={"sample": {}, "alerts": alerts})
    put_json(folder, run_key("digits", "heartbeat.json"), body)
    rows = [row | {"train/loss": float("nan")} for row in rows_of(1231, 1240)]
    put_segment(folder, "digits", rows)
    assert shown(read_live(folder, "digits", NOW))["wrong"] == [
        "the newest checkpoint is 3 min 20 s old: so much work would be lost now", "the loss is not finite",
        "30 s ago: disk full", "5 min 0 s ago: data wait 23 %",
    ]  # fmt: skip


def test_what_comes_late_builds_the_report_again(folder: ObjectStore) -> None:
    def mark() -> str:
        return read_live(folder, "digits", NOW).mark

    put_running(folder, "digits")
    marks = [mark()]
    folder.put(samples_key("digits", 1, 1), b'{"step": 1, "time": 1, "phase": "training"}\n')
    marks.append(mark())
    put_finished(folder, "digits", done=False)
    marks.append(mark())
    told = {"step": 5000, "time": NOW, "event": "alert", "kind": "finished", "level": "info", "text": "all is done"}
    folder.put(samples_key("digits", 1, 2), json.dumps(told).encode())
    marks.append(mark())
    put_finished(folder, "digits")
    marks.append(mark())
    assert len(set(marks)) == len(marks), "each of them is something new to show"
    assert mark() == marks[-1]


def test_figures_that_cannot_be_are_not_shown(folder: ObjectStore) -> None:
    put_running(folder, "digits")
    sample = {"gpu/count": 1e100, "gpu/utilization": 1.5, "gpu/memory_used_bytes": -1.0, "gpu/power_watts": math.inf}
    sample |= {"gpu/temperature_celsius": math.nan}
    alert = {"time": NOW + 7200, "kind": "hung", "level": "error", "text": "of a time to come"}
    body = pulse_of(observed={"sample": sample, "alerts": [alert]})
    put_json(folder, run_key("digits", "heartbeat.json"), body)
    odd = {"train/epoch": 1e-9, "speed/images_per_second": math.inf, "speed/data_wait_fraction": 7.0}
    put_segment(folder, "digits", [row | odd for row in rows_of(1231, 1240)])
    told = shown(read_live(folder, "digits", NOW))
    figures = dict(told["figures"])
    assert (figures["step"], told["progress"], told["wrong"]) == ("1,240", None, [])
    assert not {"GPU", "speed", "data wait", "time left"} & figures.keys()
    put_segment(folder, "digits", [row | {"train/epoch": 9.99} for row in rows_of(1241, 1250)])
    assert dict(shown(read_live(folder, "digits", NOW))["figures"])["step"] == "1,240 of 1,251 (99.1 %)"
    put_segment(folder, "digits", [row | {"train/epoch": 20.0} for row in rows_of(1251, 1260)])
    assert dict(shown(read_live(folder, "digits", NOW))["figures"])["step"] == "1,240", "no end lies before it"


def test_dollars_are_those_of_the_guard_and_the_budget_that_of_the_launch(folder: ObjectStore) -> None:
    put_running(folder, "digits")
    put_json(folder, run_key("digits", "spec.json"), {"recipe": "digits", "budget_usd": 12.0, "created": BEGUN})
    put_json(folder, run_key("digits", "spend.json"), {"at": NOW, "machines": [], "usd": 3.4111})
    assert ["dollars", "$3.41 of $12.00"] in shown(read_live(folder, "digits", NOW))["figures"]


def test_without_samples_in_the_heartbeat_those_of_the_store_are_shown(folder: ObjectStore) -> None:
    put_running(folder, "digits")
    body = pulse_of()
    del body["observed"]
    put_json(folder, run_key("digits", "heartbeat.json"), body)
    alert = {"step": 2, "time": NOW - 60, "event": "alert", "kind": "throttled", "level": "warning", "text": "hot"}
    lines = [{"step": 2, "time": NOW - 9, "phase": "training", "gpu/utilization": 0.5}, alert]
    folder.put(samples_key("digits", 1, 7), "".join(json.dumps(line) + "\n" for line in lines).encode())
    told = shown(read_live(folder, "digits", NOW))
    assert ["GPU", "50 % busy"] in told["figures"]
    assert told["wrong"] == ["1 min 0 s ago: hot"]


def test_a_metrics_file_that_was_cut_in_a_line_shows_its_whole_lines(folder: ObjectStore) -> None:
    put_running(folder, "digits")
    put_segment(folder, "digits", rows_of(1231, 1240), cut=20)
    told = shown(read_live(folder, "digits", NOW))
    assert ["speed", "2,560 images/s"] in told["figures"]
    assert len(told["wrong"]) == 1
    assert "1 lines of runs/digits/metrics/1/00001231-00001240.jsonl are no measurements" in told["wrong"][0]


def test_a_run_of_an_older_format_is_shown_as_far_as_it_goes(folder: ObjectStore) -> None:
    put_json(folder, run_key("old", "heartbeat.json"), {"phase": "training", "step": 7, "time": NOW - 5, "attempt": 1})
    folder.put(metrics_key("old", 1, "00000001-00000007.jsonl"), b'{"step": 7, "train/loss": 2.5}\n')
    folder.put(checkpoint_key("old", HEAD_FILE), b'{"attempt": 1, "owner": "x"}')
    told = shown(read_live(folder, "old", NOW))
    assert (told["word"], told["wrong"]) == ("running", [])
    assert dict(told["figures"]) == {"step": "7", "loss": "2.5 in training"}


@pytest.mark.parametrize(
    "file", ["heartbeat.json", "attempts/1.json", "spec.json", "result.json", "failed.json", "spend.json", "manifest"]
)
def test_no_forged_file_stops_the_page_or_steers_it(
    folder: ObjectStore, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_attempt_record(folder, "digits", 1)
    put_checkpoint(folder, "digits")
    put_json(folder, run_key("digits", "heartbeat.json"), pulse_of())
    honest: dict[str, Any] = {"attempt": 1, "usd": 1.5, "message": "x", "machine": {"type": "g6"}, "exit": 0}
    honest |= {"started": 1.0, "recipe": "r", "budget_usd": 1.0, "created": 1.0, "best": {"top1": 0.5, "step": 1}}
    honest |= {"steps": 1, "epochs": 1, "steps_per_epoch": 1.0, "seconds": 1.0, "images_per_second": 1.0, "attempts": 1}
    if file == "heartbeat.json":
        alert = {"time": NOW, "kind": "starved", "level": "warning", "text": "x"}
        honest = pulse_of(observed={"sample": {"gpu/utilization": 0.5, "gpu/count": 2}, "alerts": [alert]})
    key = run_key("digits", file)
    if file == "manifest":
        key, honest = manifest_key("digits", 1200, 1), manifest_of("digits")
    get, bodies = folder.get, iter(forgeries(honest))
    monkeypatch.setattr(folder, "get", lambda asked: next(bodies) if asked == key else get(asked))
    for _ in forgeries(honest):
        text = json.dumps(shown(read_live(folder, "digits", NOW)))
        assert len(text) < 20_000
    assert next(bodies, None) is None, "each was read once"
