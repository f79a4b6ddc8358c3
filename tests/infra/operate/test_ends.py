"""Why an attempt ended, told by `logs`: each kind of end by what there is to know it from, and no more than that."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from infra.operate.ends import attempt_ends
from infra.run.spend import Machine, Spend
from tests.infra.deployed import RUN, Deployed
from tests.infra.operate.log_writer import Writer
from tests.infra.operator import operate
from trainer.contract import attempt_key, run_key

NOW = 1_800_000_000.0
MACHINE = Machine(
    id="i-1", type="g6.xlarge", zone="a", market="spot", launched=NOW - 3600, deadline=NOW + 7200, ended=NOW
)
SAVED = {"exit": 75, "message": "step 7 of 9 is saved", "ended": NOW}


def told(*attempts: dict[str, Any], machine: Machine = MACHINE, is_over: bool = False, **guard: Any) -> list[str]:
    """What follows on "ended <time>: "."""
    made = [{"attempt": n, "machine": {"id": "i-1"}} | one for n, one in enumerate(attempts, 1)]
    ends = attempt_ends(made, guard, Spend(at=NOW, machines=(machine,)), is_over=is_over)
    return [line.partition(": ")[2] for line in ends.values()]


@pytest.mark.parametrize(
    ("attempt", "machine", "guard", "why"),
    [
        (SAVED | {"reason": "spot notice: this machine is reclaimed at 12:02"}, {}, {},
         "AWS took its machine back (spot notice: this machine is reclaimed at 12:02); step 7 of 9 is saved"),
        (SAVED, {"end": "Server.SpotInstanceTermination"}, {}, "AWS took its machine back; step 7 of 9 is saved"),
        (SAVED, {}, {"ends": {"i-1": "$9.00 of the budget of $9.00 are spent"}},
         "the guard ended its machine: $9.00 of the budget of $9.00 are spent; step 7 of 9 is saved"),
        (SAVED, {}, {"stopped": NOW - 60, "reason": "$9.00 are spent"},
         "the guard stopped the run: $9.00 are spent; step 7 of 9 is saved"),
        (SAVED, {"deadline": NOW + 140}, {}, "its deadline had come; step 7 of 9 is saved"),
        (SAVED, {"end": "Client.UserInitiatedShutdown"}, {},
         "its machine was terminated: by make stop, its group, or somebody; step 7 of 9 is saved"),
        (SAVED, {}, {"stopped": NOW - 9000, "reason": "of an older launch"},
         "it was told to stop; step 7 of 9 is saved"),
        ({"exit": 1, "message": "CUDA error"}, {}, {}, "it crashed with exit code 1: CUDA error"),
        ({"exit": 78, "message": "no such class"}, {}, {}, "it failed: no such class"),
        ({"exit": 0, "message": "9 steps are done"}, {}, {}, "it finished: 9 steps are done"),
        ({}, {}, {"ends": {"i-1": "no heartbeat for 4 minutes"}},
         "the guard ended its machine: no heartbeat for 4 minutes; its last save counts"),
        ({}, {"end": "Server.SpotInstanceTermination"}, {}, "AWS took its machine back; its last save counts"),
        ({}, {}, {}, "it wrote no end, and nobody told why its machine is gone; its last save counts"),
    ],
)  # fmt: skip
def test_each_end_has_its_reason(
    attempt: dict[str, Any], machine: dict[str, Any], guard: dict[str, Any], why: str
) -> None:
    assert told(attempt, machine=replace(MACHINE, **machine), **guard) == [why]


def test_an_attempt_that_runs_has_not_ended_and_one_that_was_killed_on_its_machine_has() -> None:
    running = replace(MACHINE, ended=0.0)
    assert told({}, machine=running) == []
    assert told({}, {}, machine=running) == [
        "its container was killed without a word: boot's next lines in the log have the exit code"
    ]
    assert len(told({}, machine=running, is_over=True)) == 1
    assert told({}, {"exit": 0, "machine": {}}, machine=running, ends="no object")[1] == "it finished: "


def test_logs_tells_each_end_once_with_or_without_following(
    writer: Writer, deployed: Deployed, quick_logs: None, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed.launch()
    writer.write("words")
    record = {"started": time.time(), "machine": {"id": "i-1"}}
    deployed.put(attempt_key(RUN, 1), record | {"attempt": 1, "exit": 137, "message": "killed", "ended": time.time()})
    deployed.put(attempt_key(RUN, 2), record | {"attempt": 2})
    deployed.put(attempt_key(RUN, 3), record | {"attempt": 3, "machine": {"id": "i-2"}})
    deployed.put(run_key(RUN, "guard.json"), {"ends": {"i-1": "no progress for 11 minutes"}})
    assert operate("logs", "--no-follow") == 0
    notes = capsys.readouterr().err
    assert notes.count("attempt 1 on i-1 ended") == notes.count("it crashed with exit code 137: killed") == 1
    assert "attempt 2 on i-1 ended: the guard ended its machine: no progress for 11 minutes" in notes
    assert "attempt 3" not in notes

    deployed.put(attempt_key(RUN, 3), record | {"attempt": 3, "exit": 78, "message": "no such class"})
    deployed.end("failed", "no such class", attempt=3)
    assert operate("logs") == 0
    notes = capsys.readouterr().err
    assert [notes.count(f"attempt {number} on") for number in (1, 2, 3)] == [1, 1, 1]
    assert "it failed: no such class" in notes
