"""Reports while a run trains take a tenth of the time at most, however long the run has become."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.trainer.observer.test_told import program
from tests.uploads import wait_until
from trainer.observer import live_report
from trainer.observer.live_report import LIVE_REPORT_SECONDS, MOST_SHARE, LiveReport


def report_of(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> LiveReport:
    monkeypatch.setattr(sys, "executable", program(folder, script))
    return LiveReport(folder / "report", folder / "segments", {"PATH": "/usr/bin:/bin"})


def make_one(report: LiveReport) -> dict[str, bytes]:
    report.began -= report.pause
    assert report.start_if_due(has_news=True)
    found: dict[str, bytes] = {}

    def is_over() -> bool:
        found.update(report.finished())
        return report.process is None

    wait_until(is_over)
    return found


def test_after_a_report_that_took_too_long_the_pauses_grow_until_one_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = report_of(tmp_path, "exec sleep 60", monkeypatch)
    monkeypatch.setattr(live_report, "LONGEST_REPORT_SECONDS", 0.05)
    pauses = []
    for _ in range(3):
        assert make_one(report) == {}
        pauses.append(report.pause)
    assert pauses == [2 * LIVE_REPORT_SECONDS, 4 * LIVE_REPORT_SECONDS, 8 * LIVE_REPORT_SECONDS]
    monkeypatch.setattr(live_report, "LONGEST_REPORT_SECONDS", 60.0)
    program(tmp_path, 'mkdir -p "$4"; echo page > "$4/index.html"')
    assert make_one(report) == {"index.html": b"page\n"}
    assert report.pause == LIVE_REPORT_SECONDS


def test_the_time_of_a_report_that_was_ended_is_the_same_share_of_its_pause_as_that_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = report_of(tmp_path, "exec sleep 60", monkeypatch)
    report.began -= report.pause
    assert report.start_if_due(has_news=True)
    report.began -= 130  # seconds that pass
    assert report.finished() == {}
    assert report.process is None
    assert report.pause >= 130 / MOST_SHARE


def test_the_next_report_finds_what_the_one_before_has_read_and_no_file_of_the_report_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = 'mkdir -p "$4" "$6"; test "$5" = --keep || exit 1; echo row >> "$6/a"; cat "$6/a" > "$4/index.html"'
    report = report_of(tmp_path, script, monkeypatch)
    assert make_one(report) == {"index.html": b"row\n"}
    assert make_one(report) == {"index.html": b"row\nrow\n"}
