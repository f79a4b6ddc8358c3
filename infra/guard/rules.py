"""The guards. Each is a small function from facts to a reason; "" means that it has none. There is no I/O here.

What is unknown is no reason. If the store cannot be read, the run counts neither as finished nor as hung. There are two
exceptions, since they would cost money: machines without a run, and machines whose budget cannot be known.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

from infra.guard import deaths, nodes
from infra.guard.facts import Facts
from infra.guard.memory import Memory
from infra.run.fleet import ON_DEMAND, FleetMachine, Group
from infra.run.spec import Spec

TICK_SECONDS = 60.0  # from one tick of the guard to the next
SHUTDOWN_SECONDS = 180.0  # for so long a machine may bill after the group was set to 0
BOOT_SECONDS = 900.0  # from launch to the first heartbeat: boot, pull of the image, start
SILENCE_SECONDS = 180.0  # a run is hung if no heartbeat comes for so long; one comes every 30 s
PAUSE_SECONDS = 300.0  # from an attempt's end to the next one's heartbeat: boot waits up to 3 minutes
STALL_SECONDS = 600.0  # a run is hung if its progress counter stays the same for so long
HANG_KILLS = 3  # so often hung machines are replaced without a newer checkpoint; the next time the run is stopped
EXIT_SECONDS = 120.0  # for so long boot may act on done.json or failed.json itself, and send its last log lines
OVERDUE_SECONDS = 120.0  # so long past the deadline, the machine's own timer has failed
REST_SECONDS = 900.0  # for so long after its machines are gone, a run is still read every minute


@dataclass(frozen=True, kw_only=True)
class Decision:
    stop: str = ""  # why the groups must be set to 0; "" if the run may go on
    terminate: Mapping[str, str] = field(default_factory=dict)  # machine: reason
    is_hang: bool = False  # some machines are terminated as hung: that is counted
    is_market_due: bool = False  # the run must change to the on-demand group
    nodes: int = 0  # so many machines may the groups be asked for, together; 0: as they are
    why_fewer: str = ""  # "": nobody asked for more
    leaving: tuple[str, ...] = ()  # the machines that go then
    memory: Memory


# Each of these returns a reason to set the groups to 0.


def past_deadline(facts: Facts) -> str:
    return "the deadline has passed" if 0 < facts.deadline <= facts.now else ""


def finished(facts: Facts) -> str:
    done = facts.signs.done
    return "the run has finished" if done and facts.now >= done + EXIT_SECONDS else ""


def failed(facts: Facts) -> str:
    at = max(facts.signs.failed, kept_until(facts))
    return f"the run has failed: {facts.signs.failure}" if at and facts.now >= at + EXIT_SECONDS else ""


def kept_until(facts: Facts) -> float:
    """Until when the machine on which the run failed stays on for the user. 0: it does not, or it is gone."""
    at, minutes = facts.signs.failed, facts.spec.keep_minutes if facts.spec else 0.0
    is_there = facts.machines is None or any(machine.launched <= at for machine in facts.billing)
    return at + 60 * minutes if at and minutes and is_there else 0.0


def budget_spent(facts: Facts) -> str:
    """Counts what all machines, also those to come, spend until the next tick and the shutdown after it."""
    if not facts.spec:
        return ""
    spent = facts.spend.usd_at_most(facts.now)
    missing = max(0, facts.desired - len(facts.spend.open))
    hourly = facts.spend.usd_per_hour() + missing * _dearest(facts.spec, facts.groups)
    ahead = hourly * (TICK_SECONDS + SHUTDOWN_SECONDS) / 3600
    if spent + ahead < facts.spec.budget_usd:
        return ""
    return f"${spent:.2f} of the budget of ${facts.spec.budget_usd:.2f} are spent"


def without_run(facts: Facts) -> str:
    if facts.run_id or facts.is_at_rest:
        return ""
    return "machines without a run: no one launched them with `make launch`"


def without_spec(facts: Facts) -> str:
    return f"the run has no valid spec.json, hence no budget: {facts.spec_problem}" if facts.spec_problem else ""


def blind(facts: Facts) -> str:
    """While the store fails, the budget that this process remembers counts. If it remembers none, no budget holds."""
    if not facts.unknown_budget or not any(facts.now - m.launched > BOOT_SECONDS for m in facts.billing):
        return ""
    return f"no budget can be kept: {facts.unknown_budget}"


def hung_too_often(facts: Facts) -> str:
    if not _is_confirmed(facts) or _hang_kills(facts) < HANG_KILLS:
        return ""
    return f"{_symptom(facts)}, for the {HANG_KILLS + 1}th time without a new checkpoint in between"


def died_young(facts: Facts) -> str:
    """Asks the heartbeat in the store, not the machines that are there: between two short lives there may be none."""
    beat = facts.signs.heartbeat
    if beat is None or not facts.desired:
        return ""
    if facts.team is not None:
        return nodes.all_died(facts)
    died = deaths.young_deaths(facts.spend, facts.deadline, beat.at)
    return deaths.explain_deaths(died, facts.run_id) if len(died) >= deaths.YOUNG_DEATHS else ""


# Each of these returns the machines to terminate, with a reason for each.


def hung(facts: Facts) -> dict[str, str]:
    """All machines of a hung run, since nodes wait for each other. The group replaces them."""
    if not _is_confirmed(facts):
        return {}
    return {machine.id: _symptom(facts) for machine in _working(facts)}


def unwanted(facts: Facts) -> dict[str, str]:
    """The machines that should be gone by now: they have been unwanted for longer than a shutdown takes."""
    return {
        machine.id: _why_unwanted(facts, machine)
        for machine in facts.billing
        if facts.now - facts.memory.unwanted.get(machine.id, facts.now) >= SHUTDOWN_SECONDS
    }


def apart(facts: Facts) -> dict[str, str]:
    """The machines that do not train with the others. The group replaces them, while the others go on."""
    return nodes.apart_too_long(facts, _working(facts))


def overdue(facts: Facts) -> dict[str, str]:
    if not facts.deadline or facts.now < facts.deadline + OVERDUE_SECONDS:
        return {}
    return {machine.id: "still there past the deadline" for machine in facts.billing}


STOPS: tuple[Callable[[Facts], str], ...] = (
    finished, failed, past_deadline, budget_spent, without_run, without_spec, blind, hung_too_often, died_young,
)  # fmt: skip
TERMINATIONS: tuple[Callable[[Facts], dict[str, str]], ...] = (hung, apart, unwanted, overdue)


def on_demand_due(facts: Facts) -> bool:
    """Whether only spot machines are wanted, and none has come for the time that the spec allows."""
    is_on_demand = any(group.desired and group.market == ON_DEMAND for group in facts.groups)
    if not facts.spec or not facts.spec.on_demand_after_minutes or is_on_demand:
        return False
    since = facts.memory.without_machine
    return bool(since) and facts.now - since >= facts.spec.on_demand_after_minutes * 60


def too_many(facts: Facts) -> int:
    """How many machines the run asked for, if its groups are asked for more; else 0."""
    asked = int(facts.spec.nodes) if facts.spec else 0
    return asked if 0 < asked < facts.desired else 0


def replaced_in_vain(facts: Facts) -> tuple[tuple[str, ...], str]:
    """The machines with which a run of several goes on, where the others die young or never train; and why."""
    stay, why = nodes.fewer(facts, _wanted(facts), _working(facts)) if facts.team is not None else ([], "")
    return tuple(stay), why


def outside(machines: Collection[FleetMachine], groups: Collection[str], now: float) -> dict[str, str]:
    """Machines with the installation's tag that none of its groups launched: no guard of a group sees them."""
    return {
        machine.id: "a machine of the installation outside its groups"
        for machine in machines
        if machine.is_billing and machine.group not in groups and now - machine.launched >= BOOT_SECONDS
    }


def decide(facts: Facts, without: Collection[str] = ()) -> Decision:
    """Decides by all guards. `without` names guards to leave out: so the simulation shows what each is for."""
    if not facts.is_active:
        return Decision(memory=facts.memory)
    facts = replace(facts, memory=remember(facts))
    stop = next((reason for rule in STOPS if rule.__name__ not in without and (reason := rule(facts))), "")
    terminate, is_hang = dict[str, str](), False
    stay, why = ((), "") if stop or "replaced_in_vain" in without else replaced_in_vain(facts)
    for rule in TERMINATIONS:
        if rule.__name__ in without or (stop and rule in (hung, apart)) or (stay and rule is apart):
            continue
        is_hang |= bool(found := rule(facts)) and rule is hung
        terminate |= found
        if found and rule is apart:
            replaced = (*facts.memory.replaced, *(facts.now for _ in found))
            facts = replace(facts, memory=replace(facts.memory, replaced=replaced))
    if is_hang:
        kills, newest = _hang_kills(facts) + 1, facts.signs.checkpoint or facts.memory.checkpoint
        facts = replace(facts, memory=replace(facts.memory, hang_kills=kills, checkpoint=newest, suspected=0.0))
    is_due = not stop and "on_demand_due" not in without and on_demand_due(facts)
    most = 0 if stop or "too_many" in without else too_many(facts)
    stay = () if is_hang else stay
    leaving = tuple(machine.id for machine in _wanted(facts) if machine.id not in stay) if stay else ()
    return Decision(
        stop=stop, terminate=terminate, is_hang=is_hang, is_market_due=is_due, nodes=len(stay) or most, why_fewer=why,
        leaving=leaving, memory=facts.memory,
    )  # fmt: skip


def remember(facts: Facts) -> Memory:
    """The memory for the next tick. EC2 may leave a machine out of an answer, which does not mean that it is gone."""
    memory, now = facts.memory.for_launch(facts.deadline), facts.now
    heartbeat, unwanted, without_machine = facts.signs.heartbeat, memory.unwanted, memory.without_machine
    apart, has_ticked = memory.apart, now - memory.at < 2.5 * TICK_SECONDS
    is_moving = heartbeat is not None and heartbeat.mark != memory.mark
    if facts.machines is not None:
        told = {machine.id for machine in facts.machines}
        left_out = {id: since for id, since in unwanted.items() if id not in told and now - since < REST_SECONDS}
        unwanted = left_out | {m.id: unwanted.get(m.id, now) for m in facts.billing if _why_unwanted(facts, m)}
        is_missing = facts.desired > 0 and not facts.billing
        without_machine = (without_machine or now) if is_missing else 0.0
        apart = nodes.apart_since(replace(facts, memory=memory), _wanted(facts), has_ticked)
    suspected = 0.0
    if _symptom(replace(facts, memory=memory)):
        suspected = memory.suspected if memory.suspected and has_ticked else now
    active = memory.active if facts.is_at_rest else now
    return replace(
        memory, at=now, active=active, is_over=now - active >= REST_SECONDS, suspected=suspected,
        mark=heartbeat.mark if heartbeat and is_moving else memory.mark,
        marked=heartbeat.at if heartbeat and is_moving else memory.marked,
        unwanted=unwanted, without_machine=without_machine, apart=apart, replaced=nodes.replaced_lately(facts, memory),
    )  # fmt: skip


def _dearest(spec: Spec, groups: Collection[Group]) -> float:
    """The most that the groups' next machine can cost in an hour."""
    types = {type for group in groups for type in group.types}
    listed = [spec.prices[type] for type in types if type in spec.prices] or spec.prices.values()
    return max(listed, default=0.0) + spec.extras_usd_per_hour


def _is_confirmed(facts: Facts) -> bool:
    """Whether an earlier tick suspected the same. Right after an outage of the store, the heartbeat is still old."""
    return 0 < facts.memory.suspected < facts.now


def _hang_kills(facts: Facts) -> int:
    """Replacements since the newest checkpoint. An unknown newest checkpoint counts as the remembered one."""
    is_newer = facts.signs.checkpoint not in ("", facts.memory.checkpoint)
    return 0 if is_newer else facts.memory.hang_kills


def _wanted(facts: Facts) -> list[FleetMachine]:
    return [machine for machine in facts.billing if not _why_unwanted(facts, machine)]


def _working(facts: Facts) -> list[FleetMachine]:
    """The run's machines that are wanted and have had time to boot."""
    return [machine for machine in _wanted(facts) if facts.now - machine.launched >= BOOT_SECONDS]


def _symptom(facts: Facts) -> str:
    """Why the run seems hung; "" if it does not, or if that is unknown."""
    beat, signs, memory = facts.signs.heartbeat, facts.signs, facts.memory
    working = _working(facts)
    if not working or beat is None or signs.done or signs.failed:
        return ""
    if beat.at < max(machine.launched for machine in working):  # an earlier machine wrote it
        return "no heartbeat since the machine was launched"
    if facts.now - beat.at >= SILENCE_SECONDS and facts.now - signs.paused >= PAUSE_SECONDS:
        return f"no heartbeat for {(facts.now - beat.at) / 60:.0f} minutes"
    if beat.mark == memory.mark and beat.at - memory.marked >= STALL_SECONDS:
        return f"no progress for {(beat.at - memory.marked) / 60:.0f} minutes ({beat.mark})"
    return ""


def _why_unwanted(facts: Facts, machine: FleetMachine) -> str:
    if not any(group.desired for group in facts.groups if group.name == machine.group):
        return "still there after the group was set to 0"
    if machine.run_id != facts.run_id:
        return f"of another run ({machine.run_id or 'none'})"
    return ""
