"""Two trainers and one run: however they meet, exactly one trains, and the history of HEAD.json is one line."""

from __future__ import annotations

import random
import signal
import time
from typing import Any

from tests.chaos.lab import LEASE_SECONDS, Attempt, Case, Lab, expect, step_of, wait_for
from trainer.contract import Exit

STEPS = 200  # of 20 ms: longer than a lease


def attempt_of(key: str) -> int:
    """Of a manifest's key; 0 for none."""
    return int(key.rsplit(".", 2)[1]) if key else 0


def judge_history(leases: list[tuple[float, dict[str, Any]]]) -> None:
    """Owners and checkpoints only ever follow each other; nobody commits under an owner that is not itself."""
    owner, at = 0, (0, 0)
    for _, lease in leases:
        expect(lease["attempt"] >= owner, f"attempt {lease['attempt']} wrote HEAD after attempt {owner} had the run")
        newest = step_of(lease["newest"]), attempt_of(lease["newest"])
        expect(newest >= at, f"the newest checkpoint went from step, attempt {at} back to {newest}")
        if newest != at:
            expect(newest[1] in (lease["attempt"], owner) or newest[1] < lease["attempt"], f"{newest} under {lease}")
        owner, at = lease["attempt"], newest


def judge_end(lab: Lab, attempts: list[Attempt], codes: list[int], winners: set[int]) -> int:
    """Exactly one has trained to the end, all others were turned away; the winner's number."""
    told = [f"{a.events()[-2:]} {a.errors()[-300:]}" for a in attempts]
    expect(codes.count(0) == 1, f"{codes.count(0)} of {len(codes)} trained to the end: {codes} {told}")
    expect(all(code in (0, Exit.HELD) for code in codes), f"exit codes {codes}: {told}")
    winner = codes.index(0)
    expect(winner in winners, f"attempt {winner} trained, of {winners} one should have: {told}")
    judge_history(lab.proxy.leases)
    for attempt in attempts:
        expect(all(event["right"] for event in attempt.events("restored")), "a false state was restored")
    newest = step_of(lab.lease()["newest"])
    acknowledged = max(attempt.acknowledged() for attempt in attempts)
    step, said = lab.read()
    expect(step >= acknowledged, f"lost: step {acknowledged} was acknowledged, {step} is kept")
    expect(step == newest == STEPS and not said, f"read {step}, HEAD names {newest}, the run has {STEPS} steps: {said}")
    left = lab.leftovers()
    expect(not left, f"left behind: {left}")
    return winner


def race(lab: Lab, seed: int) -> Case:
    """Both start within half a second; on half of the seeds the run is older, or both are on one machine."""
    dice = random.Random(seed)
    lab.new_try(s3=True)
    if seed % 4 >= 2:  # a run that was killed before: both find its checkpoint and its lease
        before = lab.start("scratch-0", last_step=1000)
        wait_for(lambda: before.acknowledged() >= 3, 20, "the run before commits")
        before.signal(signal.SIGKILL)
        before.wait()
    same_machine = seed % 3 == 0
    first = lab.start("scratch-1", last_step=STEPS)
    time.sleep(dice.choice([0.0, 0.0, dice.uniform(0, 0.5)]))
    second = lab.start("scratch-1" if same_machine else "scratch-2", last_step=STEPS)
    racers = [first, second]
    codes = [racer.wait(60) for racer in racers]
    judge_end(lab, racers, codes, {0, 1})
    return Case()


def sleeper(lab: Lab, seed: int) -> Case:
    """The owner stops; another takes over after the lease; the owner wakes while the other trains, or after."""
    dice = random.Random(seed)
    lab.new_try(s3=True)
    owner = lab.start("scratch-1", last_step=1000)
    wait_for(lambda: owner.acknowledged() >= 3, 20, "the owner commits")
    time.sleep(dice.uniform(0, 0.1))
    owner.signal(signal.SIGSTOP)
    stopped = time.time()
    heir = lab.start("scratch-2", last_step=STEPS)
    wait_for(lambda: heir.acknowledged() > 3 or heir.events("exit"), LEASE_SECONDS * 4 + 20, "the heir commits")
    taken = next((at for at, lease in lab.proxy.leases if at > stopped), time.time()) - stopped
    if seed % 2:
        heir.wait(60)
    owner.signal(signal.SIGCONT)
    codes = [owner.wait(60), heir.wait(60)]
    judge_end(lab, [owner, heir], codes, {1})
    return Case(notes={"takeover_seconds": taken})
