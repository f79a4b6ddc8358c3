"""The observer as a process of its own, beside the uploader's real end of it: what arrives, what it cannot hold up."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.trainer.observer.conftest import START, Attempt
from tests.uploads import wait_until
from trainer.contract import Exit, Phase
from trainer.observer.link import Link
from trainer.process import children
from trainer.process.channel import SOCKET_VARIABLE, observer_socket
from trainer.store import StoreError

FINISHED = {"code": Exit.FINISHED, "message": "9 steps are done", "reason": "stopping"}


def is_connected(attempt: Attempt) -> bool:
    return attempt.port.channel is not None


def test_an_attempt_of_a_second_leaves_a_sample_its_alerts_and_no_process(attempt: Attempt) -> None:
    observer = attempt.start()
    wait_until(lambda: is_connected(attempt))
    attempt.status(Phase.SAVING, 9)
    attempt.tell_rows(START, {"step": 9, "time": 1001.0, "val/top1": 0.5, "val_ema/top1": 0.625})
    attempt.port.tell_commit({"step": 9, "is_best": True})
    observer.tell_end(FINISHED)
    observer.finish()
    assert observer.process is not None
    assert observer.process.returncode == 0
    attempt.port.drain(5)
    (sample,) = [row for row in attempt.samples() if "event" not in row]
    assert (sample["step"], sample["phase"], sample["attempt"]) == (9, Phase.SAVING, 1)
    assert sample["machine/memory_available_bytes"] > 0
    told = {row["kind"]: row["text"] for row in attempt.samples() if row.get("event") == "alert"}
    assert told == {
        "started": "training has begun",
        "best": "the best top-1 so far: 62.50 % (EMA), of step 9; it is stored",
        "finished": "the run is finished: 9 steps are done; the last top-1: 62.50 % (EMA)",
    }
    observed = attempt.observed()
    assert [alert["id"] for alert in observed["alerts"]] == ["1-1", "1-2", "1-3"]
    assert observed["sample"]["machine/memory_available_bytes"] > 0
    assert abs(observed["sample"]["time"] - time.time()) < 10
    assert attempt.copied == ["runs/job/telemetry/1/000001.jsonl"], "TensorBoard gets a copy"


def test_of_an_attempt_that_never_had_the_run_nothing_is_stored(attempt: Attempt) -> None:
    observer = attempt.start()
    wait_until(lambda: is_connected(attempt))
    attempt.status(Phase.STAGING, 0)
    observer.tell_end({"code": Exit.USER, "message": "no such data", "reason": "stopping"})
    observer.finish()
    attempt.port.drain(5)
    assert attempt.samples() == []
    assert [alert["text"] for alert in attempt.observed()["alerts"]] == ["no such data"], "but the heartbeat tells why"


@pytest.mark.parametrize("code", [Exit.FINISHED, Exit.INTERRUPTED])
def test_what_was_kept_for_reports_goes_with_the_end_of_the_run_and_stays_for_its_next_attempt(
    attempt: Attempt, code: Exit
) -> None:
    kept = attempt.folder.parent / "segments"
    kept.mkdir()
    (kept / "1.jsonl").write_bytes(b"{}")
    observer = attempt.start()
    wait_until(lambda: is_connected(attempt))
    observer.tell_end({"code": code, "message": "so it ended", "reason": "stopping"})
    observer.finish()
    assert kept.exists() == (code == Exit.INTERRUPTED)


def test_it_ends_when_the_supervisor_is_gone(attempt: Attempt) -> None:
    observer = attempt.start()
    wait_until(lambda: is_connected(attempt))
    assert observer.process is not None
    assert observer.process.stdin is not None
    observer.told = 0.0
    observer.process.stdin.close()
    assert observer.process.wait(timeout=10) == 0


def test_one_that_dies_is_said_in_a_line_and_is_no_zombie(attempt: Attempt, capfd: pytest.CaptureFixture[str]) -> None:
    observer = attempt.start()
    assert observer.process is not None
    observer.process.kill()
    observer.reaper.join(10)
    assert not Path(f"/proc/{observer.process.pid}").exists()
    assert capfd.readouterr().err.count("the observer has died (SIGKILL): training goes on") == 1
    began = time.monotonic()
    observer.tell_end(FINISHED)
    observer.finish()
    assert time.monotonic() - began < 1


def test_one_that_hangs_holds_up_neither_the_uploader_nor_the_end(
    attempt: Attempt, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(children, "OBSERVER_SECONDS", 0.5)
    observer = attempt.start()
    wait_until(lambda: is_connected(attempt))
    assert observer.process is not None
    os.kill(observer.process.pid, signal.SIGSTOP)
    began = time.monotonic()
    for step in range(2000):  # more than any socket holds
        attempt.tell_rows(START | {"step": step})
    attempt.port.drain(5)
    observer.tell_end(FINISHED)
    observer.finish()
    assert time.monotonic() - began < 4
    observer.reaper.join(10)
    assert observer.process.returncode == -signal.SIGKILL
    assert "the observer has not ended in 0 s: killing it" in capfd.readouterr().err


def test_where_it_cannot_be_started_training_goes_on(
    attempt: Attempt, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    observer = attempt.start()
    observer.tell_end(FINISHED)
    observer.finish()
    assert "the observer cannot be started" in capfd.readouterr().err


def test_a_store_that_fails_or_is_lost_takes_nothing_of_it_and_delays_nothing(
    attempt: Attempt, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(key: str, body: bytes) -> str:
        raise StoreError("the disk is gone", "EIO")

    link = Link(observer_socket(attempt.environ[SOCKET_VARIABLE]))
    link.open()
    wait_until(lambda: is_connected(attempt))
    attempt.ownership.is_mine = False
    assert link.put("runs/job/report/index.html", b"of another attempt")
    wait_until(attempt.port.is_done)
    attempt.ownership.is_mine = True
    for foreign in ("runs/job/done.json", "checkpoints/job/HEAD.json", "runs/job/telemetry/2/000001.jsonl"):
        assert link.put(foreign, b"x")
    assert link.put("runs/job/report/index.html", b"mine")
    wait_until(lambda: bool(list(attempt.store.list("runs/"))))
    assert {info.key for info in attempt.store.list("")} == {"runs/job/report/index.html"}
    assert attempt.store.get("runs/job/report/index.html") == b"mine"
    monkeypatch.setattr(attempt.store, "put", fail)
    assert link.put("runs/job/report/index.html", b"more")
    wait_until(lambda: not attempt.port.idle.is_set())
    began = time.monotonic()
    attempt.port.drain(0.2)
    assert time.monotonic() - began < 1
    wait_until(attempt.port.is_done)
    assert "the store fails, trying runs/job/report/index.html again, and training goes on" in capfd.readouterr().err
    link.close()


@pytest.mark.parametrize("content", ["", "[1]", '{"sample": ', "x" * 70_000, "[" * 60_000])
def test_a_file_of_the_observer_that_makes_no_sense_is_left_out_of_the_heartbeat(
    attempt: Attempt, content: str
) -> None:
    (attempt.folder / "observed.json").write_text(content)
    assert attempt.observed() == {}


@pytest.mark.parametrize("age", [-7200.0, 0.0, 50.0, 70.0, math.nan, None])
def test_the_sample_of_one_that_has_died_or_hangs_is_not_passed_off_as_one_of_now(
    attempt: Attempt, age: float | None
) -> None:
    sample = {"gpu/utilization": 0.9} | ({} if age is None else {"time": time.time() - age})
    (attempt.folder / "observed.json").write_text(json.dumps({"sample": sample, "alerts": [{"id": "1-1"}]}))
    observed = attempt.observed()
    assert observed["alerts"] == [{"id": "1-1"}]
    assert ("sample" in observed) == (age in (0.0, 50.0))
