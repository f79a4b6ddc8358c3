"""What the guard does to the groups of a run. What fails is noted, and tried again at the next tick."""

from __future__ import annotations

import traceback
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from infra.guard import reading
from infra.guard.facts import Facts
from infra.run import fleet
from infra.run.fleet import ON_DEMAND, SPOT, Group
from infra.run.values import printable


def together(groups: Iterable[Group]) -> list[tuple[Group, ...]]:
    """The groups of each run. A group without a run stands alone."""
    found: dict[tuple[str, str], list[Group]] = {}
    for group in groups:
        found.setdefault((group.run_id, "" if group.run_id else group.name), []).append(group)
    return [tuple(of_one) for of_one in found.values()]


def stop_run(autoscaling: Any, facts: Facts, problems: list[str]) -> bool:
    """Sets the run's groups to 0, and returns whether that succeeded."""
    before = len(problems)
    for group in facts.groups:
        if group.desired:
            with noted(problems, f"scaling {group.name} to 0"):
                fleet.scale_to_zero(autoscaling, group.name)
    return len(problems) == before


def leave_out(
    autoscaling: Any, facts: Facts, machines: Collection[str], nodes: int, why: str, problems: list[str]
) -> str:
    """Ends machines of a run of several without a replacement, and says why. The others are not touched.

    One call takes a machine and its place in the group. Two would let the group choose which machine goes.
    """
    for id in machines:
        autoscaling.terminate_instance_in_auto_scaling_group(InstanceId=id, ShouldDecrementDesiredCapacity=True)
    resize(autoscaling, facts, nodes, problems)
    ended = f"; {', '.join(machines)} ended" if machines else ""
    return f"the run goes on with {nodes} machine{'s' * (nodes > 1)}, and asks for no other{ended}: {why}"


def take_back(autoscaling: Any, facts: Facts, nodes: int, problems: list[str]) -> str:
    """Takes the machines back that nobody asked for, and says so."""
    resize(autoscaling, facts, nodes, problems)
    names = " and ".join(group.name for group in facts.groups if group.desired)
    return (
        f"{facts.desired} machines were asked of {names}, and {nodes} for the run: the others go. Find out who asked."
    )


def resize(autoscaling: Any, facts: Facts, nodes: int, problems: list[str]) -> None:
    """Sets size and maximum of the groups. On-demand machines stay if the run may change to them.

    It asks for their sizes of now: whoever has set them to 0 since the tick began has stopped the run. A maximum that
    AWS refuses to change takes nothing back.
    """
    spec, left = facts.spec, nodes
    first = ON_DEMAND if spec and (spec.on_demand_after_minutes or spec.market == ON_DEMAND) else SPOT
    groups: Collection[Group] = facts.groups
    with noted(problems, "the groups' sizes of now"):  # else those of the tick's start count
        groups = fleet.read_groups(autoscaling, [group.name for group in groups])
    for group in sorted(groups, key=lambda group: group.market != first):
        kept = min(group.desired, left)
        left -= kept
        if kept < group.desired:
            fleet.scale_down(autoscaling, group.name, kept)
        if group.maximum > nodes:
            with noted(problems, f"the maximum of {group.name}"):
                fleet.cap_group(autoscaling, group.name, nodes)


def change_market(autoscaling: Any, facts: Facts, nodes: int, problems: list[str]) -> str:
    """Asks the on-demand group for the run's machines instead, and says why. It needs no permission but to set sizes.

    The new group comes first: a failure in between leaves the run with two groups, which `too_many` mends, not none.
    """
    spot = [group for group in facts.groups if group.desired]
    target = next((group for group in facts.groups if group.market == ON_DEMAND), None)
    if target is None:
        by_hand = f"`make stop`, then `make launch RUN={facts.run_id} MARKET=on-demand`"
        change = f"no spot machine came, and the run cannot change to on-demand machines by itself: {by_hand}"
    else:
        fleet.scale(autoscaling, target.name, nodes)
        for group in spot:
            with noted(problems, f"scaling {group.name} to 0"):
                fleet.scale_to_zero(autoscaling, group.name)
        change = "no spot machine came: from now on on-demand machines"
    why: list[str] = []
    with noted(problems, "why no machine came"):
        since = facts.spec.launched if facts.spec else 0.0
        for group in spot:
            why += [str(refusal) for refusal in fleet.why_no_machine(autoscaling, group, since)[:3]]
    return f"{change}. {'; '.join(why)}".strip()


@contextmanager
def noted(problems: list[str], what: str) -> Iterator[None]:
    """Prints an error and adds it to `problems`: one failed read or act must not stop the other guards."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  # whatever it is, the tick goes on
        problems.append(printable(f"{what}: {error}"))
        print(problems[-1])
        if not isinstance(error, reading.UnreadableError) and not hasattr(error, "response"):
            traceback.print_exc()  # no answer of AWS, so an error of ours
