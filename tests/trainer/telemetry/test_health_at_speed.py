"""The rules where rows come fast, in segments as an uploader tells them: no place in a segment is blind."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest

from trainer.contract import Phase
from trainer.telemetry.health import Course, Moment, Observation, Surroundings, judge_rows, judge_samples

GPU = Surroundings(has_gpu=True, cores=4)


def told(segments: list[list[dict[str, Any]]]) -> Iterator[Observation]:
    course = Course()
    for rows in segments:
        yield from judge_rows(course, rows, GPU, None)
        course = course.plus(rows)


def steps_of(seconds: int, speed: float, every: int = 10, **more: float) -> list[dict[str, Any]]:
    """So many seconds of training at this speed (steps/s), with a look every so many steps."""
    rows = []
    for step in range(1, int(seconds * speed) + 1):
        row = {"step": step, "time": 1000.0 + step / speed, "train/loss": 2.0 + 0.05 * (step % 3)}
        if step % every == 0:
            row |= {"checkpoint/lag_seconds": 1.0, "speed/step_seconds_p50": 1 / speed}
            row |= {name.replace("__", "/"): value for name, value in more.items()}
        rows.append(row)
    return rows


def cut(rows: list[dict[str, Any]], seconds: float = 30.0) -> list[list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(int(row["time"] // seconds), []).append(row)
    return list(found.values())


@pytest.mark.parametrize("speed", [0.4, 1.6, 10, 40])
def test_a_loss_that_jumps_is_told_wherever_in_a_segment_it_does(speed: float) -> None:
    seconds = max(150, round(150 / speed) + 60)
    for share in (0.0, 0.13, 0.37, 0.5, 0.71, 0.99):
        rows = steps_of(seconds, speed)
        first = max(101, int(speed * 60)) + int(share * 30 * speed)
        for row in rows[first : first + 2000]:
            row["train/loss"] += 3.0
        found = [one for one in told(cut(rows)) if one.kind == "loss-jump"]
        assert found, (speed, share)
        assert "from 2.050 to" in found[0].text
    assert not list(told(cut(steps_of(seconds, speed))))


def test_each_validation_of_a_segment_is_looked_at() -> None:
    rows = steps_of(30, 10)
    rows[100] |= {"val/loss": math.nan, "val/top1": 0.1}
    rows[200] |= {"val/loss": 2.0, "val/top1": 0.1}
    (found,) = told([rows])
    assert "val/loss of step 101 is nan" in found.text


def test_waiting_for_data_is_told_at_many_steps_in_a_second() -> None:
    (first, *_) = told(cut(steps_of(120, 60, speed__data_wait_fraction=0.6)))
    assert (first.kind, "data wait 60 %" in first.text) == ("starved", True)


@pytest.mark.parametrize("every", [10, 1000])
def test_a_validation_in_each_minute_silences_no_complaint(every: int) -> None:
    """As the trainer writes them: at a validation there is a look, whose row the scores join."""
    rows = steps_of(240, 4, every=every, speed__data_wait_fraction=0.5)
    for i in range(200, len(rows), 200):  # each 50 s, for 10 s
        look = {"checkpoint/lag_seconds": 1.0, "speed/data_wait_fraction": 0.5, "speed/step_seconds_p50": 0.25}
        rows[i - 1] |= look | {"val/loss": 1.0, "val/top1": 0.5}
        for row in rows[i:]:
            row["time"] += 10.0
    found = list(told(cut(rows)))
    assert {one.kind for one in found} == {"starved"}
    assert "data wait 50 %" in found[0].text
    short = list(told(cut(rows[:239])))
    assert not short, "less than a minute of training is not judged, however long its validations take"


def test_a_gpu_is_judged_by_its_training_alone_however_often_it_validates() -> None:
    def series(seconds: int, training: float) -> list[Moment]:
        return [
            Moment(at, Phase.EVALUATING if at % 60 >= 40 else Phase.TRAINING, 7, 0.0,
                   {"gpu/throttle_reasons": 0x20, "gpu/utilization": 0.9 if at % 60 >= 40 else training})
            for at in range(0, seconds + 1, 10)
        ]  # fmt: skip

    assert [one.kind for one in judge_samples(series(130, 0.03))] == ["throttled"]
    assert [one.kind for one in judge_samples(series(630, 0.03))] == ["throttled", "idle-gpu"]
    assert [one.kind for one in judge_samples(series(630, 0.5))] == ["throttled"]
    assert not list(judge_samples(series(70, 0.03))), "50 s of training"
