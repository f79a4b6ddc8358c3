"""What the observer tells and reads: the life of a run, its dollars, and the report while it runs."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.uploads import wait_until
from trainer.alerts import Alert
from trainer.contract import Exit
from trainer.observer import live_report
from trainer.observer.facts import StoreFacts, read_cost
from trainer.observer.lifecycle import begun, budget_stage, ended, spent
from trainer.observer.live_report import LiveReport
from trainer.observer.telling import NEWEST_ALERTS, OBSERVED_BYTES, Telling
from trainer.store import ObjectStore, open_store
from trainer.telemetry.health import Observation
from trainer.telemetry.metrics import start_row


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(str(tmp_path))


def test_a_run_that_goes_on_tells_what_it_lost(store: ObjectStore) -> None:
    for attempt, name in ((1, "00000000-00000900"), (2, "00000800-00001035"), (2, "00001000-00001000_2")):
        store.put(f"runs/job/metrics/{attempt}/{name}.jsonl", b"")
    facts = StoreFacts(store.uri, "job", attempt=3, origin=1)
    assert facts.open_cost() is None, "nobody counts dollars"
    facts.find_reached()
    assert facts.reached == 1035
    assert begun(start_row(3, 1000, 1), facts.reached).text == (
        "training goes on from step 1000, in attempt 3; steps that are done again: 35"
    )
    assert begun(start_row(3, 1000, 1), None).text == "training goes on from step 1000, in attempt 3"
    assert begun(start_row(1, 0, 0), None).kind == "started"


def test_the_end_is_told_with_its_reason_unless_nothing_was_lost_or_won() -> None:
    notice = {"code": Exit.INTERRUPTED, "message": "step 7 of 10 is saved", "reason": "spot notice: reclaimed at 12:00"}
    told = ended(notice, [], has_begun=True)
    assert told == Observation("interrupted", "warning", "spot notice: reclaimed at 12:00: step 7 of 10 is saved")
    assert ended({"code": Exit.INTERRUPTED, "message": "nothing had begun"}, [], has_begun=False) is None
    assert ended({"code": Exit.HELD, "message": "attempt 2 has it"}, [], has_begun=False) is None
    assert ended({}, [], has_begun=True) is None, "the supervisor is gone, and nobody knows"
    for code in (1, Exit.USER):
        assert ended({"code": code, "message": "why"}, [], has_begun=False) == Observation("failed", "error", "why")


def test_dollars_are_counted_as_the_guard_counts_them_until_it_falls_silent(store: ObjectStore) -> None:
    now = time.time()
    gone = {"launched": now - 7200, "ended": now - 3600, "usd_per_hour": 1.0}
    here = {"launched": now - 7200, "priced": now - 1800, "usd_before": 3.0, "usd_per_hour": 2.0, "ended": 0.0}
    store.put(
        "runs/job/spend.json", json.dumps({"at": now, "machines": [gone, here, "odd", {"launched": "x"}]}).encode()
    )
    assert read_cost(store, "job")["cost/usd"] == pytest.approx(1.0 + 3.0 + 1.0, abs=0.01)
    store.put("runs/job/spend.json", json.dumps({"at": now - 1500, "machines": [here]}).encode())
    assert read_cost(store, "job")["cost/usd"] == pytest.approx(3.0 + 2.0 * 900 / 3600, abs=0.01)
    for odd in (b"", b"[]", b"{}", b'{"at": 1, "machines": 7}'):
        store.put("runs/job/spend.json", odd)
        assert read_cost(store, "job") == {}
    store.put("runs/job/spec.json", b'{"budget_usd": 40.0}')
    facts = StoreFacts(store.uri, "job", attempt=1, origin=0)
    assert facts.open_cost() is not None
    assert facts.budget_usd == 40.0


def test_a_budget_is_told_at_its_stages() -> None:
    assert [budget_stage(usd, 10.0) for usd in (0, 4.99, 5, 7.9, 8, 12)] == [0, 0, 0.5, 0.5, 0.8, 1.0]
    assert spent(0.8, 8.25, 10.0) == Observation("budget", "warning", "80 % of the budget are spent: $8.25 of $10.00")


class Webhook:
    """Takes what a delivery would send."""

    def __init__(self) -> None:
        self.taken: list[Alert] = []

    def send(self, alert: Alert) -> None:
        self.taken.append(alert)


def test_what_is_wrong_is_told_once_in_a_quarter_of_an_hour_to_all(capfd: pytest.CaptureFixture[str]) -> None:
    webhook: Any = Webhook()
    telling = Telling("job", 2, webhook)
    starved = Observation("starved", "warning", "data wait 23 %")
    (row,) = telling.tell(starved, 9)
    assert (row["event"], row["kind"], row["step"]) == ("alert", "starved", 9)
    assert telling.tell(Observation("starved", "warning", "data wait 31 %"), 12) == []
    assert [alert.text for alert in webhook.taken] == ["data wait 23 %"]
    assert capfd.readouterr().err == "warning: data wait 23 %\n"
    telling.tell(Observation("finished", "info", "x" * 9000), 20)
    assert capfd.readouterr().err == "", "the supervisor says so"
    assert [alert["id"] for alert in telling.newest] == ["2-1", "2-2"]
    assert [alert.id for alert in webhook.taken] == ["2-1", "2-2"]
    for step in range(50):
        telling.tell(Observation("failed", "error", f"{step} " + "é" * 500), step)
    assert len(telling.newest) == NEWEST_ALERTS
    observed = telling.observed({"gpu/power_watts": 70.0})
    assert len(json.dumps(observed)) <= OBSERVED_BYTES, "the oldest are left out"
    assert observed["sample"] == {"gpu/power_watts": 70.0}
    assert [alert["step"] for alert in observed["alerts"]][-2:] == [48, 49]


def program(tmp_path: Path, script: str) -> str:
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_a_report_is_made_when_there_is_news_and_not_too_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = 'mkdir -p "$4"; cd "$4"; touch a.png; echo "$3" > index.html; echo no > .x.tmp; sleep 0.3; nice > b.png'
    monkeypatch.setattr(sys, "executable", program(tmp_path, script))
    report = LiveReport(tmp_path / "report", tmp_path / "segments", {"PATH": "/usr/bin:/bin"})
    assert not report.start_if_due(has_news=True), "not at once: a short run has one at its end"
    report.began -= live_report.LIVE_REPORT_SECONDS
    assert not report.start_if_due(has_news=False)
    assert report.start_if_due(has_news=True)
    assert not report.start_if_due(has_news=True)
    found: dict[str, bytes] = {}
    wait_until(lambda: bool(found.update(report.finished())) or bool(found))
    assert list(found) == ["a.png", "b.png", "index.html"], "the page comes last"
    assert found["index.html"] == b"--into\n"
    assert found["b.png"] == b"19\n", "it gives way to everything else"
    assert not report.start_if_due(has_news=True)


@pytest.mark.parametrize(("script", "why"), [("exit 1", "`make report` says why"), ("exec sleep 60", "more than 0 s")])
def test_a_report_that_fails_or_hangs_is_left_out_and_said_once(
    script: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", program(tmp_path, script))
    monkeypatch.setattr(live_report, "LONGEST_REPORT_SECONDS", 0.1)
    report = LiveReport(tmp_path / "report", tmp_path / "segments", {"PATH": "/usr/bin:/bin"})
    for _ in range(2):
        report.began -= report.pause
        assert report.start_if_due(has_news=True)

        def is_over() -> bool:
            return not report.finished() and report.process is None

        wait_until(is_over)
    assert capfd.readouterr().err.count(why) == 1
