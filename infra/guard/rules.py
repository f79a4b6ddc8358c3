"""The guards, one small function each: facts in, verdict out. Nothing here does I/O.

What is not known decides nothing by itself: a store that cannot be read is no finished run and no hung one. The two
exceptions cost money otherwise: machines without a run, and machines whose budget cannot be known.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from infra.guard.memory import Memory
from infra.run.fleet import ON_DEMAND, FleetMachine, Group
from infra.run.spec import Spec
from infra.run.spend import Spend

TICK_SECONDS = 60.0  # how often the guard looks
SHUTDOWN_SECONDS = 180.0  # that a machine may bill after the group was set to 0
BOOT_SECONDS = 900.0  # from launch to the first heartbeat: boot, pull of the image, start
SILENCE_SECONDS = 180.0  # without a heartbeat, which comes every 30 s: hung
PAUSE_SECONDS = 300.0  # from one attempt's end to the next one's heartbeat: boot waits up to 3 minutes
STALL_SECONDS = 600.0  # with the same progress counter: hung
HANG_KILLS = 3  # without a newer checkpoint in between
EXIT_SECONDS = 120.0  # what boot has to act on done.json and failed.json itself, and to send its last log lines
OVERDUE_SECONDS = 120.0  # past the deadline: the machine's own timer has failed
REST_SECONDS = 900.0  # so long after it came to rest, the end of a run is news


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """heartbeat.json. Its time is S3's, so that the machine's clock does not matter."""

    at: float
    mark: str = ""  # phase, step and progress counter, as they came


@dataclass(frozen=True, kw_only=True)
class Signs:
    """What the run's machines wrote. Times are S3's; 0 for never, or unknown."""

    heartbeat: Heartbeat | None = None  # None: unknown
    paused: float = 0.0  # when the heartbeat's attempt ended: boot starts the next one
    done: float = 0.0  # when done.json was written
    failed: float = 0.0  # the same of a failed.json that counts
    failure: str = ""  # its message
    checkpoint: str = ""  # the newest; "" for none, or unknown


@dataclass(frozen=True, kw_only=True)
class Facts:
    """One group and its run, as far as AWS could be asked just now. Times are Unix seconds, 0 for never or unknown."""

    now: float
    group: Group
    machines: tuple[FleetMachine, ...] | None = ()  # launched by the group; None: EC2 could not be asked
    spec: Spec | None = None
    spec_problem: str = ""  # why there is none: what is wrong with it
    unknown_budget: str = ""  # why spec or spend could not be read, now and ever before
    spend: Spend = field(default_factory=Spend)
    signs: Signs = field(default_factory=Signs)
    memory: Memory = field(default_factory=Memory)

    @property
    def deadline(self) -> float:
        """The group's tag counts; where it is not readable, the spec's word."""
        return self.group.deadline or (self.spec.deadline if self.spec else 0.0)

    @cached_property
    def billing(self) -> tuple[FleetMachine, ...]:
        return tuple(machine for machine in self.machines or () if machine.is_billing)

    @property
    def is_at_rest(self) -> bool:
        """Nothing wanted, nothing running (that is known of: what is not, nobody could stop)."""
        return self.group.desired == 0 and not self.billing

    @property
    def is_active(self) -> bool:
        """At rest it is only while its end is news."""
        return not self.is_at_rest or bool(self.memory.active and not self.memory.is_over)


@dataclass(frozen=True, kw_only=True)
class Decision:
    stop: str = ""  # the reason why the group must be at 0; "" where it may run
    terminate: Mapping[str, str] = field(default_factory=dict)  # machine: reason
    is_hang: bool = False  # some of them are to be replaced, and that is counted
    market: str = ""  # to change to
    memory: Memory


# Reasons to set the group to 0.


def past_deadline(facts: Facts) -> str:
    return "the deadline has passed" if 0 < facts.deadline <= facts.now else ""


def finished(facts: Facts) -> str:
    done = facts.signs.done
    return "the run has finished" if done and facts.now >= done + EXIT_SECONDS else ""


def failed(facts: Facts) -> str:
    at = facts.signs.failed
    return f"the run has failed: {facts.signs.failure}" if at and facts.now >= at + EXIT_SECONDS else ""


def budget_spent(facts: Facts) -> str:
    """With what is spent until the next look, and until the machines are gone after it; those to come among them."""
    if not facts.spec:
        return ""
    spent = facts.spend.usd_at_most(facts.now)
    missing = max(0, facts.group.desired - len(facts.spend.open))
    hourly = facts.spend.usd_per_hour() + missing * _dearest(facts.spec, facts.group)
    ahead = hourly * (TICK_SECONDS + SHUTDOWN_SECONDS) / 3600
    if spent + ahead < facts.spec.budget_usd:
        return ""
    return f"${spent:.2f} of the budget of ${facts.spec.budget_usd:.2f} are spent"


def without_run(facts: Facts) -> str:
    if facts.group.run_id or facts.is_at_rest:
        return ""
    return "machines without a run: no one launched them with `make launch`"


def without_spec(facts: Facts) -> str:
    return f"the run has no valid spec.json, hence no budget: {facts.spec_problem}" if facts.spec_problem else ""


def blind(facts: Facts) -> str:
    """A store that fails for a while is bridged by what this process remembers; without that no budget holds."""
    if not facts.unknown_budget or not any(facts.now - m.launched > BOOT_SECONDS for m in facts.billing):
        return ""
    return f"no budget can be kept: {facts.unknown_budget}"


def hung_too_often(facts: Facts) -> str:
    if not _is_confirmed(facts) or _hang_kills(facts) < HANG_KILLS:
        return ""
    return f"{_symptom(facts)}, for the {HANG_KILLS + 1}th time without a new checkpoint in between"


# Reasons to terminate single machines.


def hung(facts: Facts) -> dict[str, str]:
    """Its group replaces it. More than one node: they wait for each other, so all of them."""
    if not _is_confirmed(facts):
        return {}
    return {machine.id: _symptom(facts) for machine in _working(facts)}


def unwanted(facts: Facts) -> dict[str, str]:
    """For longer than a shutdown takes."""
    return {
        machine.id: _why_unwanted(facts, machine)
        for machine in facts.billing
        if facts.now - facts.memory.unwanted.get(machine.id, facts.now) >= SHUTDOWN_SECONDS
    }


def overdue(facts: Facts) -> dict[str, str]:
    if not facts.deadline or facts.now < facts.deadline + OVERDUE_SECONDS:
        return {}
    return {machine.id: "still there past the deadline" for machine in facts.billing}


STOPS: tuple[Callable[[Facts], str], ...] = (
    finished, failed, past_deadline, budget_spent, without_run, without_spec, blind, hung_too_often,
)  # fmt: skip
TERMINATIONS: tuple[Callable[[Facts], dict[str, str]], ...] = (hung, unwanted, overdue)


def on_demand_due(facts: Facts) -> bool:
    """Spot machines are wanted, and for the stated time there was none."""
    if not facts.spec or not facts.spec.on_demand_after_minutes or facts.group.market == ON_DEMAND:
        return False
    since = facts.memory.without_machine
    return bool(since) and facts.now - since >= facts.spec.on_demand_after_minutes * 60


def outside(machines: Collection[FleetMachine], groups: Collection[str], now: float) -> dict[str, str]:
    """Machines with the installation's tag that no group of it launched, and so no guard of a group sees."""
    return {
        machine.id: "a machine of the installation outside its groups"
        for machine in machines
        if machine.is_billing and machine.group not in groups and now - machine.launched >= BOOT_SECONDS
    }


def decide(facts: Facts, without: Collection[str] = ()) -> Decision:
    """What to do. `without` names guards to leave out: the simulation shows what each is for."""
    if not facts.is_active:
        return Decision(memory=facts.memory)
    facts = replace(facts, memory=remember(facts))
    stop = next((reason for rule in STOPS if rule.__name__ not in without and (reason := rule(facts))), "")
    terminate: dict[str, str] = {}
    is_hang = False
    for rule in TERMINATIONS:
        if rule.__name__ in without or (rule is hung and stop):
            continue
        is_hang |= bool(found := rule(facts)) and rule is hung
        terminate |= found
    if is_hang:
        kills, newest = _hang_kills(facts) + 1, facts.signs.checkpoint or facts.memory.checkpoint
        facts = replace(facts, memory=replace(facts.memory, hang_kills=kills, checkpoint=newest, suspected=0.0))
    market = ON_DEMAND if not stop and "on_demand_due" not in without and on_demand_due(facts) else ""
    return Decision(stop=stop, terminate=terminate, is_hang=is_hang, market=market, memory=facts.memory)


def remember(facts: Facts) -> Memory:
    """What has to be known at the next look."""
    memory, now = facts.memory.for_launch(facts.deadline), facts.now
    heartbeat, unwanted, without_machine = facts.signs.heartbeat, memory.unwanted, memory.without_machine
    is_moving = heartbeat is not None and heartbeat.mark != memory.mark
    if facts.machines is not None:
        unwanted = {m.id: unwanted.get(m.id, now) for m in facts.billing if _why_unwanted(facts, m)}
        is_missing = facts.group.desired > 0 and not facts.billing
        without_machine = (without_machine or now) if is_missing else 0.0
    suspected = 0.0
    if _symptom(replace(facts, memory=memory)):
        was_looking = now - memory.at < 2.5 * TICK_SECONDS
        suspected = memory.suspected if memory.suspected and was_looking else now
    active = memory.active if facts.is_at_rest else now
    return replace(
        memory, at=now, active=active, is_over=now - active >= REST_SECONDS, suspected=suspected,
        mark=heartbeat.mark if heartbeat and is_moving else memory.mark,
        marked=heartbeat.at if heartbeat and is_moving else memory.marked,
        unwanted=unwanted, without_machine=without_machine,
    )  # fmt: skip


def _dearest(spec: Spec, group: Group) -> float:
    """What the next machine may cost an hour."""
    listed = [spec.prices[type] for type in group.types if type in spec.prices] or spec.prices.values()
    return max(listed, default=0.0) + spec.extras_usd_per_hour


def _is_confirmed(facts: Facts) -> bool:
    """In two looks in a row: after an outage of the store, the first look may come before the first heartbeat."""
    return 0 < facts.memory.suspected < facts.now


def _hang_kills(facts: Facts) -> int:
    """Since the newest checkpoint; where that is not known, it is taken for the same."""
    is_newer = facts.signs.checkpoint not in ("", facts.memory.checkpoint)
    return 0 if is_newer else facts.memory.hang_kills


def _working(facts: Facts) -> list[FleetMachine]:
    """The run's machines that have had the time to boot."""
    return [
        machine for machine in facts.billing
        if machine.run_id == facts.group.run_id and facts.now - machine.launched >= BOOT_SECONDS
    ]  # fmt: skip


def _symptom(facts: Facts) -> str:
    """Why the run looks hung; "" where it does not, or where that cannot be told."""
    beat, signs, memory = facts.signs.heartbeat, facts.signs, facts.memory
    working = _working(facts)
    if facts.group.desired == 0 or not working or beat is None or signs.done or signs.failed:
        return ""
    if beat.at < max(machine.launched for machine in working):  # of an earlier machine
        return "no heartbeat since the machine was launched"
    if facts.now - beat.at >= SILENCE_SECONDS and facts.now - signs.paused >= PAUSE_SECONDS:
        return f"no heartbeat for {(facts.now - beat.at) / 60:.0f} minutes"
    if beat.mark == memory.mark and beat.at - memory.marked >= STALL_SECONDS:
        return f"no progress for {(beat.at - memory.marked) / 60:.0f} minutes ({beat.mark})"
    return ""


def _why_unwanted(facts: Facts, machine: FleetMachine) -> str:
    if facts.group.desired == 0:
        return "still there after the group was set to 0"
    if machine.run_id != facts.group.run_id:
        return f"of another run ({machine.run_id or 'none'})"
    return ""
