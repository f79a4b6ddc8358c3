"""Each kind of fault on each operation of a commit, for seconds, while training goes on.

Training never stops, is held up by no more than 1 % of its time, and is durable again within an interval and two
timeouts of a request after the fault's end.
"""

from __future__ import annotations

import time
from typing import Any

from tests.chaos.lab import MANY_NUMBERS, NUMBERS, Attempt, Case, Lab, expect, step_of, wait_for
from tests.emulator.faults import FAULTS

INTERVAL = 1.0  # seconds between saves
TIMEOUTS = 2 * (3.0 + 5.0)  # connect and read, twice
FAULT_SECONDS = 4.0
HELD_UP = 0.01  # of the time
MINUTE = 60.0
# What a fault meets: operations by name, and whether the state is large enough for parts.
OPERATIONS: dict[str, tuple[set[str], bool]] = {
    "put-data": ({"put-data"}, False),
    "create-multipart": ({"create-multipart"}, True),
    "upload-part": ({"upload-part"}, True),
    "complete": ({"complete"}, True),
    "put-manifest": ({"put-manifest"}, False),
    "put-lease": ({"put-lease"}, False),
    "get-lease": ({"get-lease"}, False),
    "put-metrics": ({"put-metrics"}, False),
    "put-heartbeat": ({"put-heartbeat"}, False),
    "tag": ({"tag"}, False),
    "everything": (set(), False),
    "start": (set(), False),  # all that a start asks: list, get, HEAD
}
PAIRS = [(kind, operation) for operation in OPERATIONS for kind in FAULTS]
COUNT = len(PAIRS)
ALL = {
    f"{verb}-{kind}"
    for verb in ("put", "get", "look")
    for kind in ("lease", "manifest", "data", "metrics", "heartbeat", "attempt", "other")
} | {
    "create-multipart",
    "upload-part",
    "complete",
    "abort",
    "list",
    "list-uploads",
    "list-parts",
    "tag",
    "get-tags",
    "get-lifecycle",
}


def fault(lab: Lab, seed: int) -> Case:
    kind, operation = PAIRS[seed % COUNT]
    lab.new_try(s3=True)
    return at_start(lab, kind) if operation == "start" else in_training(lab, kind, operation)


def share_of(kind: str) -> float:
    """SlowDown comes now and then, all else every time."""
    return 0.3 if kind == "503" else 1.0


def in_training(lab: Lab, kind: str, operation: str) -> Case:
    operations, large = OPERATIONS[operation]
    numbers = MANY_NUMBERS if large else NUMBERS
    # A heartbeat comes at the start, and then every half minute; HEAD.json is read again after an answer was lost.
    also = {"put-lease": "lost-answer"} if operation == "get-lease" else {}
    if operation == "put-heartbeat":
        lab.proxy.inflict(kind, operations)
    run = lab.start(numbers=numbers, last_step=100_000, every_steps=0, every_seconds=INTERVAL)
    wait_for(lambda: run.acknowledged() > 0, 60, "the first commit")
    said_before = len(complaints(run))
    began = time.time()
    if operation != "put-heartbeat":
        lab.proxy.inflict(kind, operations or ALL, share=share_of(kind), also=also)
    time.sleep(FAULT_SECONDS)
    harmed = wait_for(lambda: harms(lab, kind), 30, f"{kind} on {operation}: a call to harm")
    lab.proxy.heal()
    ended = time.time()

    def newer() -> list[float]:
        """When HEAD named a step that was done after the fault's end."""
        done = [event["step"] for event in run.events("saved") if event["time"] > ended]
        return [at for at, lease in lab.proxy.leases if at > ended and done and step_of(lease["newest"]) >= done[0]]

    limit = INTERVAL + TIMEOUTS
    found = wait_for(newer, limit + 5, f"{kind} on {operation}: durable again")
    durable = found[0] - ended
    blocked = held_up(run, began, ended + 1)
    problems = [line for line in run.errors().splitlines() if "Traceback" in line]
    said = len(complaints(run)) - said_before
    run.signal(15, "supervisor")
    code = run.wait(60)
    about = f"{kind} on {operation}"
    expect(durable <= limit, f"{about}: durable again after {durable:.1f} s")
    expect(not problems, f"{about}: {run.errors()[-600:]}")
    expect(code == 0, f"{about}: the end was {code}: {run.events()[-2:]} {run.errors()[-300:]}")
    expect(said <= 1 + (time.time() - began) / MINUTE, f"{about}: {said} complaints: {complaints(run)}")
    expect(blocked <= HELD_UP, f"{about}: training was held up {100 * blocked:.2f} % of the time")
    step, skipped = lab.read(numbers)
    expect(step >= run.acknowledged() and not skipped, f"lost: {about}: read step {step} {skipped}")
    notes = {"durable_seconds": durable, "held_up_percent": 100 * blocked}
    return Case(injected=harmed, notes=notes)


def harms(lab: Lab, kind: str) -> int:
    return sum(1 for call in lab.proxy.calls if call.harmed == kind)


def complaints(run: Attempt) -> list[str]:
    """What was said, but for the digest of each checkpoint, which is no complaint."""
    lines = [line for line in run.errors().splitlines() if line.strip()]
    return [line for line in lines if not line.startswith("uploader: storing step ")]


def held_up(run: Attempt, began: float, ended: float) -> float:
    """The share of the time of the seconds that lie in the span."""
    seconds = [event for event in run.events("second") if began <= event["time"] - event["seconds"] <= ended]
    expect(bool(seconds), "training stood still during the fault")
    return float(sum(event["blocked"] for event in seconds) / sum(event["seconds"] for event in seconds))


def at_start(lab: Lab, kind: str) -> Case:
    """A run with a checkpoint is started during the fault: it continues from it, or ends with a reason. Never at 0."""
    first = lab.start(last_step=4, lockstep=True)
    expect(first.wait() == 0, f"the run could not begin: {first.errors()}")
    lab.proxy.forget()
    lab.proxy.inflict(kind, ALL, share=share_of(kind))
    second = lab.start(last_step=8, lockstep=True)
    time.sleep(FAULT_SECONDS)
    harmed = harms(lab, kind)
    lab.proxy.heal()
    code = second.wait(90)
    judge_restart(second, f"{kind} at the start", code)
    if code:
        third = lab.start(last_step=8, lockstep=True)
        expect(third.wait() == 0, f"{kind} at the start: after it {third.events()[-2:]} {third.errors()[-300:]}")
        judge_restart(third, f"{kind} before the start", 0)
    step, skipped = lab.read()
    expect(step == 8 and not skipped, f"lost: {kind} at the start: read step {step} {skipped}")
    return Case(injected=harmed, notes={"start_ended": float(code != 0)})


def judge_restart(attempt: Attempt, about: str, code: int) -> None:
    restored: dict[str, Any] = attempt.last("restored")
    if code:
        reason = attempt.errors().strip() or attempt.last("refused")
        expect(bool(reason), f"{about}: ended {code} without a reason: {attempt.events()[-2:]}")
        expect("Traceback" not in attempt.errors(), f"{about}: {attempt.errors()[-600:]}")
        expect(not attempt.events("crashed"), f"{about}: {attempt.last('crashed')}")
    expect(not restored or restored["step"] == 4, f"lost: {about}: it began at step {restored.get('step')}, not 4")
    expect(not restored or restored["right"], f"{about}: a false state was restored")
