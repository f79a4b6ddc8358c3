"""`make track`: what a run commits is at the tracker, each step once, whenever it is killed and whatever is redone."""

from __future__ import annotations

import json
import random
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests import PATIENCE
from tests.trainer.trackers.conftest import Rounds, Values
from tests.trainer.trackers.growing import Growing
from trainer.contract import Exit
from trainer.store import open_store
from trainer.telemetry.metrics import read_metrics

STEPS = 150
KILLED_IN = ("open_tracker", "feed", "feed", "close", "feed", "open_tracker", "feed", "feed", "close", "feed")


def logged(uri: str, run_id: str) -> Values:
    """What the run itself has of each step."""
    rows = [row for row in read_metrics(open_store(uri), run_id) if "event" not in row]
    return {row["step"]: {name: value for name, value in row.items() if "/" in name} for row in rows}


def written(folder: Path) -> int:
    """Bytes, and files and folders."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += 1 + path.stat().st_size
    return total


def without_samples(values: Values) -> Values:
    return {step: {name: row[name] for name in row if not name.startswith("gpu/")} for step, row in values.items()}


def as_text(values: Values) -> str:
    """The same for the same values, also where they are NaN."""
    return json.dumps(values, sort_keys=True)


def test_killed_ten_times_each_step_of_an_interrupted_run_is_at_the_tracker_once(
    rounds: Rounds, tmp_path: Path
) -> None:
    uri, chance = str(tmp_path), random.Random(rounds.to)
    run = Growing(open_store(uri), "killed")
    run.grow(STEPS)
    first = rounds.track(uri, "killed", "--once")
    assert first["status"] == Exit.FINISHED, first["said"]
    whole = reached = max(rounds.held("killed"))
    for i, part in enumerate(KILLED_IN):
        run.grow(STEPS)
        calls = first["calls"][part] * ((run.step - reached) / whole if part == "feed" else 1)
        at = 1 + int(calls * chance.random())
        ended = rounds.track(uri, "killed", "--once", part=part, killed_after=at, alone=i % 3 == 2)
        assert ended["status"] in (-9, Exit.FINISHED), ended["said"]
        reached = max(rounds.held("killed"))
    run.grow(STEPS, whole=True)
    run.finish()
    ended = rounds.track(uri, "killed")
    assert ended["status"] == Exit.FINISHED, ended["said"]
    assert as_text(without_samples(rounds.held("killed"))) == as_text(logged(uri, "killed"))


def test_a_rewound_run_is_fed_on_beyond_what_the_tracker_has_and_that_is_said(rounds: Rounds, tmp_path: Path) -> None:
    run = Growing(open_store(uri := str(tmp_path)), "rewound")
    run.grow(60, whole=True)
    rounds.track(uri, "rewound", "--once")
    before = rounds.held("rewound")
    run.rewind(30)
    run.grow(40, whole=True)
    run.finish()
    ended = rounds.track(uri, "rewound")
    assert ended["said"].count("it takes no step back") == 1
    values = logged(uri, "rewound")
    assert max(values) == 70
    beyond = {step: row for step, row in values.items() if step > max(before)}
    assert as_text(without_samples(rounds.held("rewound"))) == as_text(without_samples(before) | beyond)


def test_a_run_is_followed_until_it_ends_and_its_samples_are_with_its_steps(rounds: Rounds, tmp_path: Path) -> None:
    run = Growing(open_store(uri := str(tmp_path)), "followed")
    run.grow(20)

    def train() -> None:
        while written(rounds.folder) == before and time.monotonic() < deadline:
            time.sleep(0.05)
        for _ in range(3):
            time.sleep(0.2)
            run.grow(20)
        run.grow(20, whole=True)
        run.finish()

    before, deadline = written(rounds.folder), time.monotonic() + PATIENCE
    trainer = threading.Thread(target=train)
    trainer.start()
    ended = rounds.track(uri, "followed")
    trainer.join()
    assert ended["status"] == Exit.FINISHED, ended["said"]
    assert ended["said"].count("given to") > 1
    held = rounds.held("followed")
    assert as_text(without_samples(held)) == as_text(logged(uri, "followed"))
    sampled = {step: row["gpu/utilization"] for step, row in held.items() if "gpu/utilization" in row}
    assert sampled == run.sampled


def test_ctrl_c_ends_it_cleanly_and_the_next_one_goes_on(rounds: Rounds, tmp_path: Path) -> None:
    run = Growing(open_store(uri := str(tmp_path)), "stopped")
    run.grow(20, whole=True)
    ended = rounds.track(uri, "stopped", interrupted_after=2.5)
    assert ended["status"] == Exit.INTERRUPTED, ended["said"]
    assert "Traceback" not in ended["said"]
    run.finish()
    assert rounds.track(uri, "stopped")["status"] == Exit.FINISHED
    assert as_text(without_samples(rounds.held("stopped"))) == as_text(logged(uri, "stopped"))


@pytest.mark.parametrize("rounds", ["trackio"], indirect=True)
def test_a_run_in_s3_is_given_too(rounds: Rounds, s3_uri: str, aws_environ: dict[str, str]) -> None:
    run = Growing(open_store(s3_uri), "in-s3")
    run.grow(20)
    run.grow(20, whole=True)
    run.finish()
    ended = rounds.track(s3_uri, "in-s3", environ=aws_environ)
    assert ended["status"] == Exit.FINISHED, ended["said"]
    assert as_text(without_samples(rounds.held("in-s3"))) == as_text(logged(s3_uri, "in-s3"))


@pytest.mark.parametrize("rounds", ["mlflow"], indirect=True)
def test_what_a_killed_mlflow_left_empty_is_no_obstacle(rounds: Rounds, tmp_path: Path) -> None:
    run = Growing(open_store(uri := str(tmp_path)), "begun")
    run.grow(20)
    (rounds.folder / "123456").mkdir(parents=True)
    (rounds.folder / "234567").mkdir()
    (rounds.folder / "234567/meta.yaml").touch()
    assert rounds.track(uri, "begun", "--once")["status"] == Exit.FINISHED
    tag = next(path for path in rounds.folder.glob("*/*/tags/mlflow.runName") if path.read_text() == "begun")
    for name in ("0" * 32, "1" * 32):
        (tag.parents[2] / name).mkdir()
    (tag.parents[2] / ("1" * 32) / "meta.yaml").touch()
    (tag.parents[1] / "metrics/val/top1").unlink(missing_ok=True)
    (tag.parents[1] / "metrics/val").mkdir(exist_ok=True)
    (tag.parents[1] / "metrics/val/top1").touch()
    run.grow(60, whole=True)
    run.finish()
    ended = rounds.track(uri, "begun")
    assert ended["status"] == Exit.FINISHED, ended["said"]
    assert as_text(without_samples(rounds.held("begun"))) == as_text(logged(uri, "begun"))


@pytest.mark.parametrize("rounds", ["wandb"], indirect=True)
def test_steps_that_wait_offline_are_not_given_again_online_and_no_key_is_told(rounds: Rounds, tmp_path: Path) -> None:
    run = Growing(open_store(uri := str(tmp_path)), "offline")
    run.grow(20)
    assert rounds.track(uri, "offline", "--once")["status"] == Exit.FINISHED
    online = {"WANDB_MODE": "online", "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "sesame-sesame"}
    ended = rounds.track(uri, "offline", "--once", environ=online)
    assert ended["status"] == Exit.USER, ended["said"]
    assert "wandb sync --id offline-" in ended["said"]
    assert "sesame" not in ended["said"]


@pytest.mark.parametrize("rounds", ["mlflow"], indirect=True)
def test_a_database_of_mlflow_is_refused_with_the_way_round(rounds: Rounds, tmp_path: Path) -> None:
    run = Growing(open_store(uri := str(tmp_path)), "databank")
    run.grow(20)
    ended = rounds.track(uri, "databank", "--once", environ={"MLFLOW_TRACKING_URI": "postgresql://me:open@host/x"})
    assert ended["status"] == Exit.USER, ended["said"]
    assert "mlflow server" in ended["said"]
    assert "open" not in ended["said"]
