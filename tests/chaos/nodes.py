"""Runs on two to four machines, which are lost, cut off, slowed, stopped and come late, at random moments.

Each try is one run with faults one after the other. At the end nothing may be lost, and nothing may be wrong.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.chaos.ends import END_SECONDS, judge, reference
from tests.chaos.lab import Case, Lab, WrongError, expect
from tests.chaos.machines import STEPS, Group, Machine, group_of, start_all
from tests.chaos.network import GATEWAY, GIGABIT
from trainer.contract import Exit

FAULTS_OF_A_RUN = 3
CLOCK_SECONDS = -600  # S3 refuses the requests of a machine whose clock is 15 minutes off
JOINING_SECONDS = 20  # from a new attempt to its first step: torchrun (8 of them), the import of torch, the meeting
RECOVERY_SECONDS = 240  # after which a run that makes no step counts as wrong


@dataclass
class Blow:
    """What a fault does to the group, and what is undone later."""

    is_loss: bool  # the others cannot go on in this attempt
    undo: Callable[[], None] = lambda: None
    after: float = 0.0  # seconds until it is undone; 0: once the others go on


def victim_of(group: Group, dice: random.Random) -> Machine:
    return dice.choice(group.alive)


def dead(group: Group, machines: list[Machine], dice: random.Random, *, silently: bool) -> Blow:
    """They end, and in two of three cases they come back, as an Auto Scaling group replaces them."""
    for machine in machines:
        machine.die(silently=silently)
    back = len(group.alive) == 0 or dice.random() < 2 / 3

    def undo() -> None:
        for machine in machines if back else []:
            machine.boot()

    return Blow(True, undo, dice.choice([0.0, 3.0]) if group.alive else 1.0)


def killed(group: Group, dice: random.Random) -> Blow:
    return dead(group, [victim_of(group, dice)], dice, silently=True)


def head_killed(group: Group, dice: random.Random) -> Blow:
    return dead(group, [group.head()], dice, silently=True)


def ended(group: Group, dice: random.Random) -> Blow:
    """All processes of a machine end, and the kernel closes their connections."""
    return dead(group, [victim_of(group, dice)], dice, silently=False)


def two_killed(group: Group, dice: random.Random) -> Blow:
    return dead(group, dice.sample(group.alive, min(2, len(group.alive))), dice, silently=True)


def all_killed(group: Group, dice: random.Random) -> Blow:
    return dead(group, group.alive, dice, silently=True)


def cut_off(group: Group, dice: random.Random) -> Blow:
    """Its link is down for half a minute: neither the others nor the store hear it, and it goes on."""
    machine = victim_of(group, dice)
    machine.host.cut()
    return Blow(len(group.alive) > 1, machine.host.mend, 30.0)


def cut_off_for_good(group: Group, dice: random.Random) -> Blow:
    """For whom nobody is left to go on, it comes back."""
    if len(group.alive) == 1:
        return cut_off(group, dice)
    machine = victim_of(group, dice)
    machine.host.cut()
    machine.is_lost = True
    return Blow(True)


def cut_from_peers(group: Group, dice: random.Random) -> Blow:
    """Half cut: it reaches the store and no other machine."""
    machine = victim_of(group, dice)
    machine.host.refuse(*(other.host.address for other in group.machines if other is not machine))
    return Blow(len(group.alive) > 1, machine.host.mend, 40.0)


def cut_from_store(group: Group, dice: random.Random) -> Blow:
    """The other half: it reaches the others, and not the store."""
    machine = victim_of(group, dice)
    machine.host.refuse(GATEWAY)
    return Blow(False, machine.host.mend, 20.0)


def slowed(group: Group, dice: random.Random) -> Blow:
    """Its link has a tenth of the bandwidth, for a while."""
    machine = victim_of(group, dice)
    machine.host.shape(GIGABIT / 10)
    return Blow(False, machine.host.mend, dice.uniform(5, 20))


def crawling(group: Group, dice: random.Random) -> Blow:
    """Its link has a thousandth, which a step feels."""
    machine = victim_of(group, dice)
    machine.host.shape(GIGABIT / 1000)
    return Blow(False, machine.host.mend, dice.uniform(5, 15))


def lossy(group: Group, dice: random.Random) -> Blow:
    machine = victim_of(group, dice)
    machine.host.lose(0.05)
    return Blow(False, machine.host.mend, dice.uniform(5, 20))


def clock_back(group: Group, dice: random.Random) -> Blow:
    machine = victim_of(group, dice)
    machine.set_clock(CLOCK_SECONDS)
    return Blow(False)


def head_clock_back(group: Group, dice: random.Random) -> Blow:
    group.head().set_clock(CLOCK_SECONDS)
    return Blow(False)


def noticed(group: Group, dice: random.Random) -> Blow:
    """SIGTERM to the supervisor, as a spot notice ends; in two of three cases it is started again."""
    machine, back = victim_of(group, dice), dice.random() < 2 / 3
    machine.signal("trainer.process.supervise", signal.SIGTERM)
    machine.is_lost = True

    def undo() -> None:
        assert machine.process is not None
        code = machine.process.wait(120)
        expect(code in (0, Exit.INTERRUPTED), f"SIGTERM: exit code {code}: {machine.output()[-600:]}")
        if back or not group.alive:
            machine.start()

    return Blow(True, undo)


def stopped(group: Group, dice: random.Random) -> Blow:
    """A process that trains stands still and goes on later: after five seconds, or after the others gave it up."""
    machine, seconds = victim_of(group, dice), dice.choice([5.0, 40.0])
    machine.signal("trainer.train", signal.SIGSTOP)

    def undo() -> None:
        machine.signal("trainer.train", signal.SIGCONT)

    return Blow(seconds > 30 and len(group.alive) > 1, undo, seconds)


def worker_killed(group: Group, dice: random.Random) -> Blow:
    """A process that trains is killed; its machine goes on."""
    victim_of(group, dice).signal("trainer.train", signal.SIGKILL)
    return Blow(True)


def store_down(group: Group, dice: random.Random) -> Blow:
    group.network.refuse_store()
    return Blow(False, group.network.mend_store, 20.0)


def late(group: Group, dice: random.Random) -> Blow:
    """A machine that nobody waited for comes while the others train; where none is left to come, one ends and comes."""
    if waiting := [machine for machine in group.machines if machine.process is None]:
        waiting[0].start()
        return Blow(False)
    return ended(group, dice)


def killed_while_joining(group: Group, dice: random.Random) -> Blow:
    """A process dies, so all meet again; and then a machine, while they do: in torchrun, at the store or connecting."""
    attempt, until = group.lease()["attempt"], time.monotonic() + RECOVERY_SECONDS
    worker_killed(group, dice)
    while group.lease()["attempt"] == attempt and time.monotonic() < until:
        group.tend()
        time.sleep(0.05)
    time.sleep(dice.uniform(0, JOINING_SECONDS))
    return killed(group, dice)


FAULTS: dict[str, Callable[[Group, random.Random], Blow]] = {
    fault.__name__.replace("_", "-"): fault
    for fault in (
        killed, head_killed, ended, late, two_killed, all_killed, cut_off, cut_off_for_good, cut_from_peers,
        cut_from_store, slowed, crawling, lossy, clock_back, head_clock_back, noticed, stopped, worker_killed,
        store_down, killed_while_joining,
    )
}  # fmt: skip
COUNT = 22  # runs, with three faults each, unless the last machine is lost or the run ends before


def strike(group: Group, name: str, dice: random.Random) -> float:
    """One fault, and the wait until the others go on and it is undone. The seconds from a loss to the next step; or 0.

    Raises WrongError if no step comes.
    """
    attempt, began = group.lease().get("attempt", 0), time.monotonic()
    blow, is_undone = FAULTS[name](group, dice), False
    while True:
        group.tend()
        next_step, elapsed = group.watch.next_step(attempt), time.monotonic() - began
        is_past = not blow.is_loss or next_step or not group.alive  # as where whoever died had not joined yet
        if not is_undone and (elapsed >= blow.after if blow.after else is_past):
            blow.undo()
            is_undone = True
        if is_undone and (next_step or not blow.is_loss or not group.alive):
            return next_step - began if blow.is_loss and next_step else 0.0
        expect(elapsed < RECOVERY_SECONDS, f"{name}: no step within {RECOVERY_SECONDS} s: {group.said()}")
        time.sleep(0.05)


def disturbed(lab: Lab, names: Sequence[str], count: int, dice: random.Random, processes: int = 1) -> Case:
    """A run on so many machines, of so many processes each, that meets these faults, and the verdict about its end."""
    reference(lab)
    seconds, injected = list[float](), 0
    with group_of(lab, count, processes=processes) as group:
        begun = group.machines[: count - ("late" in names)]
        start_all(group, begun)
        for name in names:
            latest = int(STEPS * (0.25 + 0.2 * injected))
            moment = dice.randint(group.watch.step + 5, max(group.watch.step + 5, latest))
            group.wait_for_step(moment)
            if not group.alive:
                break
            injected += 1
            if waited := strike(group, name, dice):
                seconds.append(waited)
        group.wait(lambda: False, END_SECONDS, f"the end after {', '.join(names)}")
        for machine in group.machines:
            if machine.is_lost:
                machine.host.kill()
        notes = judge(group, lab)
    return Case(injected=injected, notes={**notes, "next_step_seconds": seconds})


def node_faults(lab: Lab, seed: int) -> Case:
    dice = random.Random(seed)
    first = FAULTS_OF_A_RUN * seed
    names = [list(FAULTS)[(first + number) % len(FAULTS)] for number in range(FAULTS_OF_A_RUN)]
    count = max(dice.choice([2, 3, 3, 4]), 3 if "two-killed" in names else 2)
    processes = 2 if seed % 3 == 2 else 1
    try:
        return disturbed(lab, names, count, dice, processes)
    except WrongError as error:
        raise WrongError(f"{count} machines of {processes}, {' and '.join(names)}: {error}") from error
