"""What a tracker may get, and what it is told where there is nothing, or nothing yet. No tracker is needed here."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.trainer.trackers.growing import Growing, lines
from trainer.contract import Exit, UserError, attempt_key, metrics_key, run_key
from trainer.store import ObjectStore, open_store
from trainer.telemetry.metrics import Row, read_metrics, start_row
from trainer.telemetry.samples import samples_key
from trainer.trackers import __main__ as command
from trainer.trackers.__main__ import main, only_one
from trainer.trackers.committed import FAILED, FINISHED, CommittedRows
from trainer.trackers.tracker import TRACKERS, TrackedRun, TrackerError, numbers, without_secrets

RUN = "digits"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where locks lie."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def run(tmp_path: Path) -> Growing:
    return Growing(open_store(str(tmp_path)), RUN)


def steps(source: CommittedRows) -> list[int]:
    found = source.read()
    assert found is not None
    return [row["step"] for row in found.rows]


def test_the_steps_below_the_newest_checkpoint_count_and_all_of_a_finished_run(run: Growing) -> None:
    source = CommittedRows(run.store, RUN)
    assert steps(source) == []
    run.grow(10)
    assert steps(source) == list(range(1, 7))
    assert source.read() is None
    run.grow(10, whole=True)
    assert steps(source) == list(range(1, 17))
    run.finish()
    found = source.read()
    assert found is not None
    assert found.ended == FINISHED
    assert found.rows == [
        row | {"gpu/utilization": run.sampled[row["step"]]} if row["step"] in run.sampled else row
        for row in read_metrics(run.store, RUN)
        if "event" not in row
    ]


def test_rows_of_an_attempt_that_has_committed_nothing_do_not_count(run: Growing) -> None:
    run.grow(20)
    before = CommittedRows(run.store, RUN).read()
    run.attempt += 1  # from an older checkpoint, since the newest was damaged, and far
    rows = [start_row(run.attempt, 5, 1), *({"step": step, "time": 1.0, "train/loss": 9.0} for step in range(6, 15))]
    run.put_rows(rows)
    assert CommittedRows(run.store, RUN).read() == before


def test_a_validation_that_the_next_attempt_does_joins_its_step_before_it_is_given(run: Growing) -> None:
    run.grow(10, whole=True)
    source = CommittedRows(run.store, RUN)
    assert steps(source)[-1] == 9
    rows = [start_row(2, 10, 1), {"step": 10, "time": 2.0, "val/top1": 0.5}, {"step": 11, "time": 3.0, "train/loss": 1}]
    run.store.put(metrics_key(RUN, 2, "00000010-00000011.jsonl"), lines(rows))
    run.attempt, run.step = 2, 11
    run.commit()
    found = source.read()
    assert found is not None
    assert found.rows[-1].keys() >= {"train/loss", "val/top1"}


def test_a_step_waits_for_the_samples_of_its_time_so_that_who_follows_gets_what_once_gives(run: Growing) -> None:
    run.clock, run.attempt, run.step = time.time(), 1, 10
    live, given = CommittedRows(run.store, RUN), dict[int, Row]()

    def look() -> tuple[int, str]:
        found = live.read()
        for row in found.rows if found else ():
            given.setdefault(row["step"], row)
        return max(given, default=0), found.ended if found else ""

    def put_samples(number: int, at: dict[float, int]) -> None:
        rows = [{"step": step, "time": run.clock + late, "gpu/power_watts": 100.0 + late} for late, step in at.items()]
        run.store.put(samples_key(RUN, run.attempt, number), lines(rows))

    run.put_rows([start_row(1, 0, 0), *(run.row(step) for step in range(1, 13))])
    run.commit()
    assert look() == (0, "")
    put_samples(1, {-1.5: 4, 0.5: 6})
    assert look() == (5, "")
    put_samples(2, {1.5: 6, 2.5: 6})  # a validation
    assert look() == (5, "")
    run.attempt, run.clock = 2, run.clock + 10
    run.put_rows([start_row(2, 10, 1) | {"time": run.clock}, *(run.row(step) for step in range(11, 21))])
    put_samples(1, {-2.0: 0, 0.1: 15})  # the first while it loads its checkpoint
    run.step = 20
    run.commit()
    assert look() == (14, "")
    run.store.put(run_key(RUN, "result.json"), b"{}")
    assert look() == (14, "")
    put_samples(2, {0.2: 20})
    run.finish()
    assert look() == (20, FINISHED)
    once = CommittedRows(run.store, RUN).read()
    assert once is not None
    assert [*given.values()] == once.rows
    assert [row["step"] for row in once.rows if "gpu/power_watts" in row] == [4, 6, 15, 20]


def test_a_failure_counts_until_a_later_attempt_has_begun(run: Growing) -> None:
    run.grow(10)
    run.store.put(attempt_key(RUN, 1), b"{}")
    run.store.put(run_key(RUN, "failed.json"), json.dumps({"attempt": 1, "message": "no data"}).encode())
    source = CommittedRows(run.store, RUN)
    assert source.ended() == FAILED
    run.store.put(attempt_key(RUN, 2), b"{}")
    assert source.ended() == ""


def test_a_segment_is_read_once(run: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    get = type(run.store).get

    def note(store: ObjectStore, key: str) -> bytes:
        read.append(key)
        return get(store, key)

    monkeypatch.setattr(type(run.store), "get", note)
    source = CommittedRows(run.store, RUN)
    for _ in range(3):
        run.grow(10)
        source.read()
        source.read()
    segments = [key for key in read if key.endswith(".jsonl")]
    assert len(segments) == len({*segments}) == 9


def said(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    status = main([*arguments])
    return status, capfd.readouterr().err


def test_an_unknown_tracker_or_run_is_an_error_with_its_fix(run: Growing, capfd: pytest.CaptureFixture[str]) -> None:
    here = ["--store", run.store.uri, "--run-id", RUN]
    for to, told in (("neptune", "TO='neptune' is no tracker"), ("", "TO= names no tracker")):
        status, text = said(capfd, *here, "--to", to)
        assert (status, told in text, "wandb, mlflow, trackio" in text) == (Exit.USER, True, True)
    status, text = said(capfd, "--store", run.store.uri, "--run-id", "digit", "--to", "mlflow")
    assert (status, "no run 'digit'" in text, "RUN=" in text) == (Exit.USER, True, True)


def test_a_run_without_a_checkpoint_has_nothing_to_give_and_no_tracker_is_opened(
    run: Growing, capfd: pytest.CaptureFixture[str]
) -> None:
    run.put_rows([start_row(1, 0, 0)])
    status, text = said(capfd, "--store", run.store.uri, "--run-id", RUN, "--to", "mlflow", "--once")
    assert status == Exit.FINISHED
    assert "has no step yet" in text


@pytest.mark.parametrize("to", TRACKERS)
def test_two_commands_do_not_feed_one_run_at_once(to: str, run: Growing, capfd: pytest.CaptureFixture[str]) -> None:
    with only_one(run.store, RUN, to):
        status, text = said(capfd, "--store", run.store.uri, "--run-id", RUN, "--to", to, "--once")
    assert status == Exit.USER
    assert "another `make track`" in text


def test_the_lock_lies_in_the_users_cache_for_each_target_and_a_folder_that_cannot_be_written_is_told(
    run: Growing, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    with only_one(run.store, RUN, "mlflow"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        with only_one(run.store, RUN, "mlflow"):
            assert len([*(cache / "resnet-spot").glob("*.lock")]) == 2
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    with (
        pytest.raises(UserError, match=r"/proc/none.*cannot be locked.*set XDG_CACHE_HOME"),
        only_one(run.store, RUN, "mlflow"),
    ):
        pass


class FailingTracker:
    where = "a tracker"

    def position(self) -> None:
        """It has nothing."""

    def feed(self, rows: Sequence[Row]) -> None:
        """It takes all."""

    def close(self, ended: str) -> None:
        raise TrackerError("it takes no end")


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (UserError("what really happened"), Exit.USER, "error: what really happened"),
        (KeyboardInterrupt(), Exit.INTERRUPTED, "the same command goes on from there"),
    ],
)
def test_an_error_at_the_end_is_said_and_hides_no_other(
    error: BaseException, status: int, told: str, run: Growing, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def interrupt(rows: Sequence[Row]) -> None:
        raise error

    run.grow(10)
    tracker = FailingTracker()
    monkeypatch.setattr(tracker, "feed", interrupt)
    monkeypatch.setattr(command, "open_tracker", lambda to, of: tracker)
    found, text = said(capfd, "--store", run.store.uri, "--run-id", RUN, "--to", "mlflow", "--once")
    assert (found, told in text, "it takes no end" in text) == (status, True, True)


def test_what_no_trainer_writes_is_no_metric_and_no_secret_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"step": 1, "time": 2.0, "train/loss": 0.5, "../up": 1.0, "a/<b>": 2.0, "a/..": 3.0}
    assert numbers(row) == {"train/loss": 0.5}
    monkeypatch.setenv("WANDB_API_KEY", "sesame-sesame")
    assert without_secrets("http://me:open@host/x refused sesame-sesame") == "http://…@host/x refused …"


def test_another_run_of_the_same_name_is_another_run_at_the_tracker() -> None:
    keys = [TrackedRun(RUN, began, {}).key for began in (1.0, 1.0, 2.0)]
    assert keys[0] == keys[1] != keys[2]
    assert keys[0].startswith("digits-")
