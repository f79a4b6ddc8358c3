"""The machines of a run of several: they join, are lost, and another one leads. Each change begins the next attempt.

Waits are those of the trainer's supervisor: a lost machine is missed after 20 s, a lost head's lease ends after 20.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from trainer.contract import Phase, run_key

if TYPE_CHECKING:
    from tests.simulate.machine import Machine
    from tests.simulate.training import Training

RECORD_SECONDS = 30.0
MISSED_SECONDS = 20.0
KNOCK_SECONDS = 60.0


def give_sign(machine: Machine) -> None:
    """Each machine writes its record from its first start on."""
    machine.sign = machine.sign or machine.clock.now
    machine.cloud.live[run_key(machine.training.run_id, f"nodes/{machine.instance.id}.json")] = lambda: record(machine)


def record(machine: Machine) -> tuple[bytes, float]:
    """Its newest one, and when S3 got it."""
    until = machine.silent or machine.instance.ended or machine.clock.now
    training = machine.training
    of_team = {"attempt": machine.attempt, "phase": Phase.TRAINING}
    of_others = {"attempt": training.attempts, "phase": None}  # it names the attempt that it would join
    body = {"node": machine.instance.id, **(of_team if machine in training.team else of_others)}
    return json.dumps(body).encode(), machine.written(until - (until - machine.sign) % RECORD_SECONDS)


def join(machine: Machine) -> None:
    """Another machine leads: this one trains with it from its next checkpoint on, if the two can reach each other."""
    training = machine.training
    give_sign(machine)
    if machine.random.random() < training.trouble.loner_share:
        knock(machine)
        return
    training.team.append(machine)
    if head := training.beating:
        head.soon(machine.random.uniform(5, 20), lambda: reform(head, is_planned=True))


def gather(machine: Machine) -> bool:
    """It leads those that are there, and returns True; or it joins another one that does."""
    training = machine.training
    if training.has_head:
        join(machine)
        return False
    training.team = [machine, *(one for one in training.team if one is not machine and one.is_alive)]
    return True


def freeze_member(head: Machine) -> bool:
    """Any machine of the run may stand still. Returns True if it is another one than the head: the others miss it."""
    victim = head.random.choice(head.training.team)
    if victim is head:
        return False
    victim.silence()
    victim.is_frozen = True
    part(victim, was_head=False)
    return True


def knock(machine: Machine) -> None:
    """It reaches nobody. Once nobody leads, it may."""
    if machine.training.has_head:
        machine.soon(KNOCK_SECONDS, lambda: knock(machine))
    else:
        machine.claim()


def reform(head: Machine, *, is_planned: bool) -> None:
    """The next attempt, with all that are there. What was not saved before a loss is lost."""
    if head.stands or head.training.beating is not head:
        return
    if head.began and is_planned:
        head.commit()
    head.lose()
    head.life += 1
    head.begin_attempt()


def part(machine: Machine, *, was_head: bool, is_planned: bool = False) -> None:
    """It is no more among those that train."""
    training = machine.training
    if machine not in training.team:
        return
    training.team.remove(machine)
    if was_head or not training.has_head:
        elect(training)
    elif head := training.beating:
        head.soon(0 if is_planned else MISSED_SECONDS, lambda: reform(head, is_planned=is_planned))


def elect(training: Training) -> None:
    """One of those that are left takes the run, once the lease of the one before has ended."""
    left = [machine for machine in training.team if machine.is_alive and not machine.is_leaving]
    for machine in left:
        machine.rest()
    if left and not (training.finished or training.failed):
        left[0].soon(left[0].random.uniform(40, 90), lambda: take_over(left[0]))


def take_over(machine: Machine) -> None:
    if not machine.training.has_head:
        machine.life += 1
        machine.claim()


def send_home(training: Training, leader: Machine) -> None:
    """The run is over: the others see it in the store, and leave as the one that has written it."""
    for machine in training.team:
        if machine is not leader and machine.is_alive:
            machine.life_over()
            machine.soon(machine.random.uniform(5, 60), machine.leave)
