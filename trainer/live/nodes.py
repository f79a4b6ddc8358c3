"""The machines of a run of several, by what each has written of itself last: `nodes/<machine>.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.contract import run_key
from trainer.store import NotFoundError, ObjectStore
from trainer.values import as_object, as_text, as_time, as_whole, check_known, parse_object

RECENT_RECORD_SECONDS = 900.0  # what is older is of a machine that is gone
MOST_RECORDS = 200  # are read


@dataclass(frozen=True, kw_only=True)
class NodePulse:
    """One machine's record. Times are Unix seconds, by its clock."""

    name: str
    time: float
    role: str = ""  # head or member
    attempt: int = 0
    phase: str = ""
    step: int = 0
    processes: int = 0
    where: str = ""  # its type and GPU, or else its address
    ended: float = 0.0  # 0: it has not
    message: str = ""


def parse_node(name: str, value: Mapping[str, Any]) -> NodePulse:
    """Raises ValueError if no machine of ours writes it."""
    machine = as_object("machine", value.get("machine") or {})
    kinds = [as_text(f"machine.{one}", machine[one]) for one in ("type", "gpu") if machine.get(one)]
    return NodePulse(
        name=name, time=as_time("time", check_known(value, "time")), role=as_text("role", value.get("role", "")),
        attempt=as_whole("attempt", value.get("attempt", 0)), phase=as_text("phase", value.get("phase", "")),
        step=as_whole("step", value.get("step", 0)), processes=as_whole("processes", value.get("processes", 0)),
        where=", ".join(kinds) or as_text("address", value.get("address") or ""),
        ended=as_time("ended", value.get("ended") or 0), message=as_text("message", value.get("message") or ""),
    )  # fmt: skip


def read_nodes_of(store: ObjectStore, run_id: str, now: float, odd: list[str]) -> tuple[NodePulse, ...]:
    """The records of the last minutes, the head's first. What no machine writes is told in `odd`. Raises StoreError."""
    folder, found = run_key(run_id, "nodes/"), list[NodePulse]()
    for info in [*store.list(folder)][:MOST_RECORDS]:
        name = info.key.removeprefix(folder).removesuffix(".json")
        try:
            found.append(parse_node(name, parse_object(store.get(info.key))))
        except NotFoundError:
            continue
        except ValueError as error:
            odd.append(f"{info.key} is not what a run writes: {error}")
    recent = [one for one in found if abs(now - one.time) < RECENT_RECORD_SECONDS]
    return tuple(sorted(recent, key=lambda one: (one.role != "head", one.name)))
