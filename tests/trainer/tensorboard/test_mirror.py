"""The folder that `make tensorboard` shows: one curve along the run's line, whatever attempts did in vain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.curves import Curves, points
from trainer.contract import metrics_key, tensorboard_key
from trainer.store import ObjectStore, StoreError, open_store
from trainer.telemetry.metrics import start_row
from trainer.telemetry.samples import samples_key
from trainer.tensorboard.mirror import Mirror
from trainer.upload.summaries import OPENING

RUN = "job"


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    (tmp_path / "store").mkdir()
    return open_store(str(tmp_path / "store") if request.param == "folder" else request.getfixturevalue("s3_uri"))


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def put(store: ObjectStore, attempt: int, first: int, last: int, *, origin: int | None = None) -> None:
    """A segment of these steps; with `origin`, the first one of an attempt that goes on from step first - 1."""
    rows = [start_row(attempt, first - 1, origin)] if origin is not None else []
    for step in range(first, last + 1):
        rows.append({"step": step, "time": 1.0, "train/loss": attempt * 1000.0 + step})
    rows[-1]["val/top1"] = float(attempt)
    named = first if origin is None else first - 1
    store.put(metrics_key(RUN, attempt, f"{named:08d}-{last:08d}.jsonl"), lines(rows))


def put_samples(store: ObjectStore, attempt: int, number: int, *steps: int) -> None:
    rows = [{"step": step, "time": 1.0, "phase": "x", "gpu/power_watts": attempt * 1000.0 + step} for step in steps]
    store.put(samples_key(RUN, attempt, number), lines(rows))


def losses(curves: Curves) -> list[tuple[int, int]]:
    """The step of each point, and the attempt that it is of."""
    return [(step, int(value) // 1000) for step, value in curves["train/loss"]]


def test_the_curve_follows_attempts_that_go_back_as_if_they_had_never_been_elsewhere(
    store: ObjectStore, tmp_path: Path
) -> None:
    shown = tmp_path / "shown"
    mirror = Mirror(store, RUN, shown)
    assert mirror.follow() == 0
    assert not list(shown.rglob("*tfevents*")), "the run has not begun"
    put(store, 1, 1, 3, origin=0)
    put_samples(store, 1, 1, 0, 0, 2, 3, 3)
    assert mirror.follow() == 2
    put(store, 1, 4, 6)
    put_samples(store, 1, 2, 3, 5)
    mirror.follow()
    before = sorted((shown / RUN).glob("*"))
    assert losses(points(shown / RUN)) == [(step, 1) for step in range(1, 7)]
    assert [step for step, _ in points(shown / RUN / "telemetry")["gpu/power_watts"]] == [0, 2, 3, 5]
    mirror.follow()
    assert sorted((shown / RUN).glob("*")) == before

    put(store, 2, 5, 9, origin=1)  # from the checkpoint of step 4
    put(store, 2, 10, 12)
    put_samples(store, 2, 1, 0, 4, 7, 12)  # the first one before it had its checkpoint
    mirror.follow()
    assert losses(points(shown / RUN)) == [*((s, 1) for s in range(1, 5)), *((s, 2) for s in range(5, 13))]
    assert points(shown / RUN)["val/top1"] == [(3, 1.0), (9, 2.0), (12, 2.0)]
    samples = points(shown / RUN / "telemetry")["gpu/power_watts"]
    assert samples == [(0, 1000.0), (2, 1002.0), (3, 1003.0), (4, 2004.0), (7, 2007.0), (12, 2012.0)]

    put(store, 3, 4, 5, origin=1)  # attempt 2 is off the line
    mirror.follow()
    assert losses(points(shown / RUN)) == [*((s, 1) for s in range(1, 4)), (4, 3), (5, 3)]
    assert points(shown / RUN)["val/top1"] == [(3, 1.0), (5, 3.0)]


def test_a_segment_that_comes_late_takes_its_place_and_a_damaged_line_is_left_out(
    store: ObjectStore, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mirror = Mirror(store, RUN, tmp_path / "shown")
    put(store, 1, 1, 2, origin=0)
    put(store, 1, 5, 6)
    mirror.follow()
    key = metrics_key(RUN, 1, "00000003-00000004.jsonl")
    store.put(key, lines([{"step": 3, "time": 1.0, "train/loss": 1003.0}]) + b'{"step": 4, "time": 1.0, "train/lo')
    store.put(f"runs/{RUN}/metrics/1/.DS_Store", b"of a file manager")
    mirror.follow()
    assert losses(points(tmp_path / "shown" / RUN)) == [(step, 1) for step in (1, 2, 3, 5, 6)]
    assert "1 lines that are no metrics" in capfd.readouterr().err


def test_a_store_that_fails_in_the_middle_leaves_no_hole_and_no_step_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path / "store"))
    put(store, 1, 1, 2, origin=0)
    put(store, 1, 3, 4)
    put(store, 1, 5, 6)
    mirror, get, fails = Mirror(store, RUN, tmp_path / "shown"), store.get, True

    def failing(key: str) -> bytes:
        if fails and "00000003" in key:
            raise StoreError("SlowDown")
        return get(key)

    monkeypatch.setattr(store, "get", failing)
    with pytest.raises(StoreError):
        mirror.follow()
    fails = False
    mirror.follow()
    assert losses(points(tmp_path / "shown" / RUN)) == [(step, 1) for step in range(1, 7)]


def test_the_pictures_are_those_of_the_attempt_that_the_line_begins_with(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    opening = tmp_path / "shown" / RUN / OPENING
    mirror = Mirror(store, RUN, tmp_path / "shown")
    put(store, 1, 1, 2, origin=0)
    mirror.follow()
    assert not opening.exists(), "a run of an older version has none"
    for attempt in (1, 2):  # attempt 1 was killed before its first checkpoint
        store.put(tensorboard_key(RUN, attempt, OPENING), f"of attempt {attempt}".encode())
    mirror.follow()
    assert opening.read_bytes() == b"of attempt 1"
    put(store, 2, 1, 2, origin=0)
    put(store, 3, 3, 4, origin=2)
    mirror.follow()
    assert opening.read_bytes() == b"of attempt 2"
