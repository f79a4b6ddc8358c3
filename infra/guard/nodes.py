"""A run of several machines: which of them train together, and which only bill. There is no I/O here.

The machines of a run replace each other without stopping the others. So one that never works goes alone.
"""

from __future__ import annotations

from collections.abc import Collection

from infra.guard.deaths import YOUNG_DEATHS, explain_deaths, young_deaths
from infra.guard.facts import Facts, Heartbeat, NodeSign
from infra.guard.memory import Memory
from infra.run.fleet import FleetMachine
from infra.run.spend import Machine
from trainer.contract import Phase

RECORD_SECONDS = 180.0  # a machine writes its record every 30 s; the lookout of the others misses it after 20
APART_SECONDS = 600.0  # for so long a machine may bill and not train with the others: the next attempt takes it in
APART_KILLS = 3  # so many such machines are replaced for each that is apart; the next time the run goes on without them
LATELY_SECONDS = 7200.0  # in so long. One that never works is replaced after 15 minutes, and the next one after as many


def living(facts: Facts, wanted: Collection[FleetMachine]) -> list[str]:
    """The machines that have given a sign of life."""
    return [machine.id for machine in wanted if machine.id in (facts.signs.nodes or {})]


def died_in_team(facts: Facts) -> list[Machine]:
    """The machines that ended without a sign of life since the newest one that gave one was launched.

    Only if the store has told which machines gave one.
    """
    beat, nodes = facts.signs.heartbeat, facts.signs.nodes
    if beat is None or nodes is None:
        return []
    lived = [machine.launched for machine in facts.spend.machines if machine.id in nodes]
    since = max([*lived, facts.memory.shrunk] if nodes else [beat.at])
    return young_deaths(facts.spend, facts.deadline, since)


def most_deaths(facts: Facts, alive: int) -> int:
    """So many young deaths are enough: as many for each machine that is missing as a run of one may have."""
    return YOUNG_DEATHS * max(1, facts.desired - alive)


def all_died(facts: Facts) -> str:
    """Why the run must stop, of which no machine lives; "" if one does, or may."""
    died = died_in_team(facts)
    if facts.machines is None or living(facts, facts.billing) or len(died) < most_deaths(facts, 0):
        return ""
    return explain_deaths(died, facts.run_id)


def apart_since(facts: Facts, wanted: Collection[FleetMachine], has_ticked: bool) -> dict[str, float]:
    """The machines that bill and do not train with the others, and since when. {} while that is unknown.

    While nobody leads, none is added and none counts; those that are known stay. So does one that EC2 once leaves out.
    """
    beat, nodes = facts.signs.heartbeat, facts.signs.nodes
    if beat is None or nodes is None:
        return {}
    soon = facts.now - APART_SECONDS + RECORD_SECONDS  # after an outage it has a few minutes, not ten
    known = {id: since if has_ticked else max(since, soon) for id, since in facts.memory.apart.items()}
    hidden = {id: known[id] for id in facts.overlooked if id in known}
    if facts.now - beat.at >= RECORD_SECONDS:
        return hidden | {one.id: known[one.id] for one in wanted if one.id in known}
    if beat.nodes >= len(wanted) + len(facts.overlooked):
        return {}
    found = [machine for machine in wanted if why_apart(nodes.get(machine.id), beat, facts.now)]
    last = {one.id: nodes[one.id].at if one.id in nodes else one.launched for one in found}  # what was heard of it
    first = {id: max(at, soon) if facts.now - at >= RECORD_SECONDS else facts.now for id, at in last.items()}
    return hidden | first | {one.id: known[one.id] for one in found if one.id in known}


def why_apart(sign: NodeSign | None, beat: Heartbeat, now: float) -> str:
    """What shows that a machine does not train in the attempt of the heartbeat; "" if it does, or prepares to."""
    if sign is None:
        return "it has never written its record"
    if now - sign.at >= RECORD_SECONDS:
        return f"its record is {(now - sign.at) / 60:.0f} minutes old"
    if not sign.phase:  # of whatever attempt: it names the one that it would join, and trains in none
        return f"its record names no phase, so it waits to be taken in, attempt {sign.attempt}"
    if sign.attempt != beat.attempt and sign.phase == Phase.STARTING:
        return f"its record says {sign.phase}, attempt {sign.attempt}"
    return ""


def apart_too_long(facts: Facts, working: Collection[FleetMachine]) -> dict[str, str]:
    """Machine: why it must go. `working` have had time to boot."""
    beat, nodes, since = facts.signs.heartbeat, facts.signs.nodes, facts.memory.apart
    if beat is None or nodes is None or facts.now - beat.at >= RECORD_SECONDS:
        return {}
    late = [one.id for one in working if facts.now - since.get(one.id, facts.now) >= APART_SECONDS]
    told = f"it bills and does not train with the others, who are in attempt {beat.attempt}"
    return {id: f"{told}: {why_apart(nodes.get(id), beat, facts.now)}" for id in late}


def fewer(facts: Facts, wanted: Collection[FleetMachine], working: Collection[FleetMachine]) -> tuple[list[str], str]:
    """The machines to go on with where the others never work, and why; [] if the run is to stay as it is."""
    alive, died = living(facts, wanted), died_in_team(facts)
    if alive and len(alive) < facts.desired and len(died) >= most_deaths(facts, len(alive)):
        ready, newest = {one.id for one in working}, max(one.launched for one in wanted if one.id in alive)
        # Whoever boots may be the next one that dies, unless it was launched with those that live.
        boots = [one.id for one in wanted if one.id not in ready and one.launched <= newest]
        return [one.id for one in wanted if one.id in {*alive, *boots}], explain_deaths(died, facts.run_id)
    apart = apart_too_long(facts, working)
    replaced = len(facts.memory.replaced)
    if apart and replaced >= APART_KILLS * len(facts.memory.apart):
        stay = [machine.id for machine in wanted if machine.id not in apart]  # those that boot do, too
        often = f"as were {replaced} machines that were replaced in the last {LATELY_SECONDS / 3600:.0f} hours"
        return stay, f"{'; '.join(f'{id}: {why}' for id, why in apart.items())}, {often}"
    return [], ""


def replaced_lately(facts: Facts, memory: Memory) -> tuple[float, ...]:
    """None any more once all machines of the run train."""
    beat = facts.signs.heartbeat
    lately = tuple(at for at in memory.replaced if facts.now - at < LATELY_SECONDS)
    return () if beat and 1 < facts.desired <= beat.nodes else lately
