"""What came of the machines of a simulated run, counted apart from the guard that is judged by it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from infra.config import Tag
from tests.simulate.cloud import Instance
from tests.simulate.trouble import RECLAIMED

MOST_YOUNG = 4  # machines of one launch, for each that is missing, that end without a sign of life; then no other comes
SLACK_SECONDS = 120.0  # until then: EC2 may leave a machine out of an answer, or refuse one


def most_at_once(instances: Sequence[Instance]) -> int:
    starts = [instance.launched for instance in instances]
    return max((sum(i.launched <= at and (not i.ended or i.ended > at) for i in instances) for at in starts), default=0)


def were_in_vain(
    instances: Sequence[Instance], signs: Mapping[str, float], gap: float, nodes: int = 1
) -> Iterator[Instance]:
    """The machines that came although too many of their launch had ended young since the last one that worked.

    `signs`: when machines first gave one. `gap` is the longest time, in seconds, between two looks of the guard.
    """
    died: dict[str, list[float]] = {}  # by launch: when
    for instance in instances:
        ends = died.setdefault(instance.tags[Tag.DEADLINE], [])
        known = instance.launched - gap - SLACK_SECONDS  # what came later, the guard may not have seen
        there = [one for one in instances if not one.ended or one.ended > instance.launched]
        alive = sum(0 < signs.get(one.id, 0.0) <= known for one in there)
        most = MOST_YOUNG * max(1, nodes - alive)
        if len(ends) >= most and ends[most - 1] < known:
            yield instance
        if signs.get(instance.id):
            ends.clear()
        elif instance.ended and instance.shape["StateReason"]["Code"] != RECLAIMED:
            ends.append(instance.ended)
