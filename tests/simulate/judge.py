"""What came of the machines of a simulated run, counted apart from the guard that is judged by it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from infra.config import Tag
from tests.simulate.cloud import Instance
from tests.simulate.trouble import RECLAIMED

MOST_YOUNG = 4  # machines of one launch that end before any heartbeat; then no other may come
SLACK_SECONDS = 120.0  # until then: EC2 may leave a machine out of an answer, or refuse one


def most_at_once(instances: Sequence[Instance]) -> int:
    starts = [instance.launched for instance in instances]
    return max((sum(i.launched <= at and (not i.ended or i.ended > at) for i in instances) for at in starts), default=0)


def were_in_vain(instances: Sequence[Instance], gave_heartbeats: Collection[str], gap: float) -> Iterator[Instance]:
    """The machines that came although MOST_YOUNG of their launch had ended young since the last heartbeat.

    `gap` is the longest time, in seconds, between two looks of the guard.
    """
    died: dict[str, list[float]] = {}  # by launch: when
    for instance in instances:
        ends = died.setdefault(instance.tags[Tag.DEADLINE], [])
        if len(ends) >= MOST_YOUNG and instance.launched > ends[MOST_YOUNG - 1] + gap + SLACK_SECONDS:
            yield instance
        if instance.id in gave_heartbeats:
            ends.clear()
        elif instance.ended and instance.shape["StateReason"]["Code"] != RECLAIMED:
            ends.append(instance.ended)
