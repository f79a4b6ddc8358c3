"""What a run has cost: machine-seconds as EC2 tells them, times price; `runs/<run_id>/spend.json`.

The guard keeps the tally, since EC2 forgets terminated machines after about an hour. Nothing here does I/O.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One EC2 instance with the run's tag. Times are Unix seconds."""

    id: str
    type: str
    zone: str
    market: str  # spot or on-demand
    launched: float
    ended: float = 0.0  # 0: it still bills
    usd_per_hour: float = 0.0

    def usd(self, now: float) -> float:
        return max(0.0, (self.ended or now) - self.launched) / 3600 * self.usd_per_hour


@dataclass(frozen=True, kw_only=True)
class Spend:
    """All machines of a run, those that EC2 has forgotten among them."""

    at: float = 0.0
    machines: tuple[Machine, ...] = field(default=())

    def usd(self, now: float) -> float:
        return sum(machine.usd(now) for machine in self.machines)

    def usd_per_hour(self) -> float:
        """What is being spent right now."""
        return sum(machine.usd_per_hour for machine in self.machines if not machine.ended)

    def tally(self, seen: Iterable[Machine], now: float) -> Spend:
        """With what EC2 tells now: a machine keeps its first price; one that EC2 no longer shows ended by now."""
        before = {machine.id: machine for machine in self.machines}
        after = dict(before)
        for machine in seen:
            known = before.get(machine.id)
            after[machine.id] = replace(known, ended=known.ended or machine.ended) if known else machine
            before.pop(machine.id, None)
        for id, lost in before.items():
            after[id] = replace(lost, ended=lost.ended or now)
        return replace(self, at=now, machines=tuple(after.values()))

    def to_json(self) -> bytes:
        return json.dumps(asdict(self) | {"usd": round(self.usd(self.at), 4)}, indent=1).encode()

    @classmethod
    def from_json(cls, body: bytes) -> Spend:
        value = json.loads(body)
        return cls(at=value["at"], machines=tuple(Machine(**machine) for machine in value["machines"]))
