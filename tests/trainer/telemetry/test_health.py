"""The rules that say what is wrong: rows and samples as a trainer and an observer make them, each near its limit."""

from __future__ import annotations

import math
from typing import Any

import pytest

from trainer.contract import Phase
from trainer.telemetry.health import Course, Moment, Observation, Surroundings, judge_rows, judge_samples

GPU, CPU = Surroundings(has_gpu=True, cores=4), Surroundings(has_gpu=False, cores=2)


def look(step: int, time: float, **values: float) -> dict[str, Any]:
    """A row as the last step of a look has it."""
    names = {"wait": "speed/data_wait_fraction", "lag": "checkpoint/lag_seconds", "scale": "train/loss_scale"}
    base = {"step": step, "time": time, "train/loss": 1.0, "checkpoint/lag_seconds": 1.0}
    return base | {names[name]: value for name, value in values.items()}


def minute(wait: float, looks: int = 8, seconds: float = 10.0, begin: float = 1000.0) -> list[dict[str, Any]]:
    return [look(10 * (i + 1), begin + seconds * i, wait=wait) for i in range(looks)]


def sample(at: float, phase: str = Phase.TRAINING, still: float = 0.0, **values: float) -> Moment:
    return Moment(at, phase, 7, still, {name.replace("__", "/"): value for name, value in values.items()})


def series(seconds: int, **values: float) -> list[Moment]:
    return [sample(at, Phase.TRAINING, 0.0, **values) for at in range(0, seconds + 10, 10)]


def rows_say(rows: list[dict[str, Any]], to: Surroundings = GPU, newest: Moment | None = None) -> list[Observation]:
    return list(judge_rows(Course(), rows, to, newest))


def test_a_minute_of_waiting_for_data_is_told_with_what_to_do() -> None:
    (found,) = rows_say(minute(0.23))
    assert (found.kind, found.level) == ("starved", "warning")
    assert found.text == (
        "data wait 23 % over the last minute of training: the loader is the limit; more --data.workers or a type with "
        "more vCPU"
    )
    assert rows_say(minute(0.05)) == []


def test_where_all_cores_are_busy_more_workers_are_not_advised() -> None:
    (found,) = rows_say(minute(0.23), GPU, sample(0, machine__cpu_fraction=0.99))
    assert "all 4 vCPU are busy; a type with more vCPU" in found.text
    assert "workers" not in found.text


def test_without_a_gpu_some_waiting_is_no_fault_and_the_advice_is_another() -> None:
    assert rows_say(minute(0.23), CPU) == []
    (found,) = rows_say(minute(0.5), CPU)
    assert "share 2 cores" in found.text
    assert "workers" not in found.text
    assert "vCPU" not in found.text


def test_no_starvation_is_told_of_a_minute_with_a_start_a_validation_or_a_compilation() -> None:
    start = {"step": 0, "time": 1000.0, "event": "start", "attempt": 1, "origin": 0}
    warm_up, validation = look(35, 1035.0), {"step": 40, "time": 1036.0, "val/top1": 0.5}
    rows = minute(0.9)
    for between in (start, warm_up, validation):
        assert rows_say([*rows[:3], between, *rows[3:]]) == []
    assert rows_say(rows[:6]) == [], "less than a minute"
    steps = [row for one in rows for row in ({"step": one["step"] - 1, "time": one["time"], "train/loss": 1.0}, one)]
    assert rows_say(steps), "steps inside a look are no warm-up"


def test_a_clock_that_jumps_tells_no_starvation() -> None:
    rows = minute(0.9)
    rows[5]["time"] += 86400
    assert rows_say(rows) == []
    assert rows_say([*minute(0.9, begin=90000.0)[:4], *rows[:2]]) == []


def test_waiting_is_weighed_by_the_time_of_each_look() -> None:
    rows = [look(1, 0.0, wait=1.0), look(2, 59.0, wait=0.0), look(3, 60.0, wait=1.0)]
    assert rows_say(rows) == [], "one second of sixty"


def losses(*parts: tuple[int, float]) -> list[dict[str, Any]]:
    values = [loss + 0.05 * (i % 3) for count, loss in parts for i in range(count)]
    return [{"step": i + 1, "time": 1000.0 + i, "train/loss": loss} for i, loss in enumerate(values)]


def test_a_loss_that_jumps_is_told_and_one_that_falls_or_shakes_is_not() -> None:
    (found,) = rows_say(losses((120, 2.0), (20, 4.5)))
    assert found.kind == "loss-jump"
    assert "from 2.050 to 4.550 by step 140" in found.text
    for calm in (losses((120, 4.0), (20, 2.0)), losses((120, 0.05), (20, 0.4)), losses((50, 2.0), (20, 4.5))):
        assert rows_say(calm) == []


def test_gradients_that_stay_not_finite_are_told_once_fp16_has_found_its_scale() -> None:
    settled = [look(step, 1000.0 + step, scale=scale) for step, scale in ((1, 65536), (300, 1024), (310, 512))]
    assert rows_say(settled) == []
    (found,) = rows_say([*settled, look(320, 1320.0, scale=16)])
    assert found.kind == "not-finite"
    assert "fell from 1024 to 16 by step 320" in found.text


def test_a_validation_whose_loss_is_not_finite_is_told() -> None:
    (found,) = rows_say([{"step": 5, "time": 1.0, "val/loss": math.nan, "val/top1": 0.1}])
    assert (found.kind, "val/loss of step 5 is nan" in found.text) == ("not-finite", True)


def test_a_store_that_takes_minutes_for_a_checkpoint_is_told() -> None:
    (found,) = rows_say([look(9, 1.0, lag=150.0)])
    assert found.kind == "store-stalled"
    assert "2 min 30 s" in found.text
    assert rows_say([look(9, 1.0, lag=60.0)]) == []


@pytest.mark.parametrize(
    ("mask", "said"), [(0x20, "too hot (91 °C)"), (0x40, "too hot"), (0x80, "its power supply"), (0x04, ""), (0x01, "")]
)
def test_a_gpu_that_slows_itself_down_is_told_but_its_power_limit_is_not(mask: int, said: str) -> None:
    found = list(judge_samples(series(60, gpu__throttle_reasons=mask, gpu__temperature_celsius=91)))
    assert [one.kind for one in found] == (["throttled"] if said else [])
    assert all(said in one.text for one in found)


def test_a_gpu_without_work_is_told_after_five_minutes_of_training_alone() -> None:
    (found,) = judge_samples(series(300, gpu__utilization=0.03))
    assert (found.kind, "3 % of the last 5 minutes" in found.text) == ("idle-gpu", True)
    assert not list(judge_samples(series(200, gpu__utilization=0.03)))
    assert not list(judge_samples(series(300, gpu__utilization=0.6)))
    evaluated = [*series(290, gpu__utilization=0.03), sample(300, Phase.EVALUATING, gpu__utilization=0.03)]
    assert not list(judge_samples(evaluated))


@pytest.mark.parametrize(
    ("phase", "still", "kind"),
    [(Phase.TRAINING, 299, ""), (Phase.TRAINING, 301, "hung"), (Phase.COMPILING, 500, ""),
     (Phase.COMPILING, 600, "hung"), (Phase.WAITING_FOR_STORE, 301, "store-stalled")],
)  # fmt: skip
def test_a_trainer_that_stands_still_is_told_and_why_where_that_is_known(phase: str, still: float, kind: str) -> None:
    assert [one.kind for one in judge_samples([sample(0, phase, still)])] == ([kind] if kind else [])


def test_a_disk_that_is_nearly_full_is_told_and_a_small_one_is_not() -> None:
    (found,) = judge_samples([sample(0, disk__scratch_free_bytes=1e9, disk__scratch_used_bytes=200e9)])
    assert (found.kind, "1.0 GB left" in found.text) == ("disk-full", True)
    assert not list(judge_samples([sample(0, disk__scratch_free_bytes=1e9, disk__scratch_used_bytes=1e9)]))
    assert not list(judge_samples([sample(0)]))
    assert not list(judge_samples([]))
