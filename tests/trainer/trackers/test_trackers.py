"""`make track`: what a run commits is at the tracker, each step once, whenever it is killed and whatever is redone."""

from __future__ import annotations

import json
import random
import threading
import time
from pathlib import Path

from tests.trainer.trackers.conftest import Rounds, Values
from tests.trainer.trackers.growing import Growing
from trainer.contract import Exit
from trainer.store import open_store
from trainer.telemetry.metrics import read_metrics

STEPS = 150
KILLED_IN = ("connect", "feed", "feed", "close", "feed", "connect", "feed", "feed", "close", "feed")


def logged(uri: str, run_id: str) -> Values:
    """What the run itself has of each step."""
    rows = [row for row in read_metrics(open_store(uri), run_id) if "event" not in row]
    return {row["step"]: {name: value for name, value in row.items() if "/" in name} for row in rows}


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
        for _ in range(3):
            time.sleep(0.3)
            run.grow(20)
        run.grow(20, whole=True)
        run.finish()

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
