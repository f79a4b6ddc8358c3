"""The machines of a run of several: what each has written last, and which one is meant."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from infra.config import Installation
from infra.operate.runs import ExplainedBucket, parse_object_or_nothing, read_spend
from infra.operate.session import Aws, explained
from infra.run import fleet
from infra.run.values import check_number, check_object, check_text, check_whole, printable
from trainer.contract import UserError, run_key

SHORT_LETTERS = 10  # of an instance's id, as in `i-0a1b2c3d`: so many tell the machines of a run apart


@dataclass(frozen=True, kw_only=True)
class NodeRecord:
    """What one machine of a run of several says of itself. `at`: when S3 got it, in Unix seconds."""

    at: float
    role: str = ""  # head or member
    attempt: int = 0
    phase: str = ""
    step: int = 0
    processes: int = 0
    gpu: str = ""
    address: str = ""
    ended: float = 0.0  # Unix seconds; 0: it has not
    message: str = ""

    @classmethod
    def from_json(cls, value: Mapping[str, Any], at: float) -> NodeRecord:
        """Raises ValueError if no machine of ours writes it."""
        attempt, step, processes = (check_whole(name, value.get(name, 0)) for name in ("attempt", "step", "processes"))
        machine = check_object("machine", value.get("machine") or {})
        told = [check_text(name, value.get(name) or "") for name in ("role", "phase", "address", "message")]
        told.append(check_text("machine.gpu", machine.get("gpu") or ""))
        role, phase, address, message, gpu = (printable(" ".join(text.split()), 300) for text in told)
        return cls(
            at=at, role=role, attempt=attempt, phase=phase, step=step, processes=processes, gpu=gpu, address=address,
            ended=check_number("ended", value.get("ended") or 0), message=message,
        )  # fmt: skip


def read_nodes(bucket: ExplainedBucket, run_id: str, ids: Collection[str]) -> tuple[dict[str, NodeRecord], list[str]]:
    """The records of these machines, and what no machine of ours writes. One that has written none is left out."""
    found, odd = dict[str, NodeRecord](), list[str]()
    with ThreadPoolExecutor(8) as pool:
        bodies = list(pool.map(lambda id: bucket.get(run_key(run_id, f"nodes/{id}.json")), ids))
    for id, stored in zip(ids, bodies, strict=True):
        if stored is None:
            continue
        try:
            found[id] = NodeRecord.from_json(parse_object_or_nothing(stored.body), stored.modified.timestamp())
        except ValueError as error:
            odd.append(f"runs/{run_id}/nodes/{id}.json, which no machine of ours writes: {error}")
    return found, odd


def machines_of(aws: Aws, installation: Installation, bucket: ExplainedBucket, run_id: str) -> set[str]:
    """The ids of the machines that the run has, and of those that it has had."""
    with explained("the machines of the run"):
        there = fleet.machines(aws.client("ec2"), installation.name, run_id)
    return {one.id for one in there} | {one.id for one in read_spend(bucket, run_id).machines}


def short_id(id: str) -> str:
    return id[:SHORT_LETTERS]


def choose_node(asked: str, ids: Collection[str]) -> str:
    """The machine whose id begins so. Raises UserError if there is none, or more than one."""
    found = sorted({id for id in ids if id.startswith(asked)})
    if len(found) == 1:
        return found[0]
    known = ", ".join(sorted(set(ids))) or "none yet"
    wrong = f"begins the ids of {', '.join(found)}" if found else "begins the id of no machine of the run"
    raise UserError(f"NODE={asked!r} {wrong}: use one id, or its first letters; the run has had: {known}")
