"""SIGKILL at every call of a commit to the store, before it takes effect and after; and at random times on a folder.

Afterwards the checkpoint of every acknowledged step can be read, the next start continues from it, and what the
killed attempt left behind is gone: no open upload, no object without its tag.
"""

from __future__ import annotations

import random
import select
import signal
import socket
import time
from pathlib import Path
from threading import Lock

from tests.chaos.lab import MANY_NUMBERS, NUMBERS, Attempt, Case, Lab, expect, wait_for
from tests.emulator.faults import Exchange
from trainer.contract import Exit

VICTIMS = ("all", "uploader", "trainer")
LAST_STEP = 5
LARGE_EVERY = 8  # so many of the tries have a state of two parts


def kill_at(lab: Lab, number: int, after: bool, plan: list[Attempt], victim: str) -> list[str]:
    """Let the proxy kill at the call of this number, from 0, of those that are made while there is the victim.

    The operation's name is in the list afterwards.
    """
    hit: list[str] = []
    count, counting = 0, Lock()

    def kill() -> bool:
        return plan[0].signal(signal.SIGKILL, victim)

    def harm(exchange: Exchange) -> None:
        nonlocal count
        with counting:
            mine = count
            if plan and (victim != "trainer" or "trainer" in plan[0].pids()):
                count += 1
            else:
                mine = -1
        if mine != number or hit:
            exchange.answer(exchange.forward())
            return
        answer = exchange.forward() if after else None
        exchange.call.harmed = "kill"
        if kill():
            hit.append(exchange.call.operation)
        if answer is None:  # of a victim it would never be sent; a survivor's goes on
            answer = exchange.forward() if lives(exchange) else None
        if answer is not None:
            exchange.answer(answer)
        else:
            exchange.hang_up()

    lab.proxy.harm = harm
    return hit


def lives(exchange: Exchange) -> bool:
    """Whether who asked still listens: a killed process's socket is closed by the kernel."""
    time.sleep(0.02)
    connection = exchange.handler.connection
    if not select.select([connection], [], [], 0)[0]:
        return True
    return bool(connection.recv(1, socket.MSG_PEEK))


def verdict(lab: Lab, first: Attempt, numbers: int, *, other_machine: bool) -> dict[str, float]:
    """Read, start again, read again, look for what was left. WrongError says what is not as it has to be."""
    acknowledged = first.acknowledged()
    step, _ = lab.read(numbers) if first.events("connected") else (0, [])
    expect(step >= acknowledged, f"lost: step {acknowledged} was acknowledged, step {step} is what can be read")
    started = time.time()
    second = lab.start(
        "other-scratch" if other_machine else "scratch", last_step=step + 2, numbers=numbers, lockstep=True
    )
    code = second.wait()
    expect(code == 0, f"the next start ended {code}: {second.events()[-2:]} {second.errors()[-400:]}")
    restored = second.last("restored")
    expect(restored["right"], f"the next start restored another state as step {restored['step']}")
    expect(restored["step"] >= step, f"lost: the next start began at step {restored['step']}, step {step} was read")
    newest, said = lab.read(numbers)
    expect(newest >= step + 2, f"the next start ended at step {newest}, not {step + 2}")
    expect(not said, f"something was skipped: {said}")
    left = lab.leftovers()
    expect(not left, f"left behind: {left}")
    return {"restart_seconds": second.last("restored")["time"] - started}


def kill_calls(lab: Lab, seed: int) -> Case:
    """One boundary: the seed counts through calls, before and after, victims, sizes and machines."""
    lab.new_try(s3=True)
    number, rest = divmod(seed, 2 * len(VICTIMS))
    after, victim = bool(rest % 2), VICTIMS[rest // 2]
    large = seed % LARGE_EVERY == LARGE_EVERY - 1
    numbers = MANY_NUMBERS if large else NUMBERS
    plan: list[Attempt] = []
    hit = kill_at(lab, number, after, plan, victim)
    first = lab.start(numbers=numbers, last_step=LAST_STEP, lockstep=seed % 2 == 0)
    plan.append(first)
    code = first.wait(120)
    if victim == "uploader" and hit and code in (0, *Exit):
        raised = [e["message"] for e in first.events("crashed")]
        expect(False, f"the uploader was killed at {hit[0]}, and the attempt ended {code} {raised}")
    wait_for_orphans(first)
    lab.proxy.heal()
    if victim == "trainer" and hit and first.events("saved"):
        sent, (step, _) = first.last("saved")["step"], lab.read(numbers)
        if first.last("saving")["step"] > sent:  # killed while a newer one was about to take its place
            sent = first.acknowledged()
        expect(
            step >= sent, f"the trainer was killed at {hit[0]} after step {sent} was handed over; step {step} is kept"
        )
    notes = verdict(lab, first, numbers, other_machine=victim == "all" and number % 2 == 1)
    return Case(injected=len(hit), notes=notes)


def wait_for_orphans(attempt: Attempt) -> None:
    """An uploader whose supervisor was killed may still work off what it has."""
    pid = attempt.last("uploader").get("pid")
    deadline = time.monotonic() + 30
    while pid and is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill_folder(lab: Lab, seed: int) -> Case:
    """A folder as the store, commits as fast as they go, SIGKILL at a random time."""
    lab.new_try(s3=False)
    dice = random.Random(seed)
    numbers = MANY_NUMBERS if seed % LARGE_EVERY == LARGE_EVERY - 1 else 400_000
    # Without a wait for the commit, a metrics file with each of so many saves would fill the uploader's queue.
    first = lab.start(
        numbers=numbers, last_step=100_000, step_seconds=0.001, lockstep=seed % 2 == 0, ask_metrics=seed % 2 == 0
    )
    if seed % 5:  # else while it starts
        wait_for(lambda: first.acknowledged() or first.events("exit"), 30, "the first commit")
    time.sleep(dice.uniform(0.0, 0.5))
    victim = VICTIMS[seed % 3]
    hit = first.signal(signal.SIGKILL, victim)
    if not hit:  # too early for this victim
        first.signal(signal.SIGKILL)
    first.wait(120)
    wait_for_orphans(first)
    return Case(injected=1, notes=verdict(lab, first, numbers, other_machine=seed % 4 == 3))
