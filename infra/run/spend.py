"""What a run has cost: machine-seconds as EC2 tells them, times price; `runs/<run_id>/spend.json`.

The guard keeps the tally, since EC2 forgets terminated machines after about an hour. Nothing here does I/O.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace

LOST_SECONDS = 600  # EC2 sometimes leaves a machine out of an answer; so long it counts as running
FORGET_SECONDS = 3600  # EC2 shows a terminated machine for about so long
LATE_SECONDS = 600  # past its deadline no machine lives for so long: its own timer and the schedule see to that
SILENT_SECONDS = 600  # a tally older than that has no guard any more, which would see what still runs


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One EC2 instance with the run's tag. Times are Unix seconds."""

    id: str
    type: str
    zone: str
    market: str  # spot or on-demand
    launched: float
    deadline: float = 0.0  # its tag; 0 where it has none
    ended: float = 0.0  # 0: it still bills
    usd_per_hour: float = 0.0  # since `priced`
    priced: float = 0.0  # since when that is its price; 0: since its launch
    usd_before: float = 0.0  # what it had cost until then
    lost: float = 0.0  # since when EC2 does not show it; 0: it does, or it has ended

    def usd(self, now: float) -> float:
        hours = ((self.ended or now) - (self.priced or self.launched)) / 3600
        return max(0.0, self.usd_before + hours * self.usd_per_hour)

    def reprice(self, usd_per_hour: float, since: float, until: float) -> Machine:
        """With the price of `until`, when that of `since` was the last known: in between it is taken for the higher."""
        if usd_per_hour == self.usd_per_hour:
            return self
        start = min(until, max(since, self.priced or self.launched))
        before = self.usd(start) + (until - start) / 3600 * max(usd_per_hour, self.usd_per_hour)
        return replace(self, usd_before=before, priced=until, usd_per_hour=usd_per_hour)


@dataclass(frozen=True, kw_only=True)
class Spend:
    """All machines of a run, those that EC2 has forgotten among them."""

    at: float = 0.0
    machines: tuple[Machine, ...] = field(default=())

    def usd(self, now: float) -> float:
        """What is known to be spent: where no guard has looked for a while, only until shortly after its last look."""
        return self.usd_at_most(self.until(now))

    def usd_at_most(self, now: float) -> float:
        """With every machine that is not known to have ended billing on: what a budget has to count with."""
        return sum(machine.usd(now) for machine in self.machines)

    def until(self, now: float) -> float:
        return min(now, self.at + SILENT_SECONDS) if self.at else now

    @property
    def open(self) -> tuple[Machine, ...]:
        """The machines that bill, as far as is known."""
        return tuple(machine for machine in self.machines if not machine.ended)

    def usd_per_hour(self) -> float:
        """What is being spent right now."""
        return sum(machine.usd_per_hour for machine in self.open)

    def tally(self, seen: Iterable[Machine], now: float) -> Spend:
        """With what EC2 tells now: its word on when a machine ended, and its price.

        A machine that EC2 does not show bills on, until it has been missing for LOST_SECONDS: then it had ended when
        it was first missing. One that EC2 shows again bills on, as if it had never been missing. After a time without
        any look, a missing machine is charged for the longest that it can have lived.
        """
        machines = {machine.id: machine for machine in self.machines}
        unseen = set(machines)
        for machine in seen:
            unseen.discard(machine.id)
            if not (known := machines.get(machine.id)):
                machines[machine.id] = machine
            elif not (known.ended and machine.ended):
                running = replace(known, ended=0.0, lost=0.0)
                running = running.reprice(machine.usd_per_hour, self.at, machine.ended or now)
                machines[machine.id] = replace(running, ended=machine.ended)
            else:
                machines[machine.id] = replace(known, ended=machine.ended)
        for id in unseen:
            if not (known := machines[id]).ended:
                lost = known.lost or self._missing_since(known, now)
                machines[id] = replace(known, lost=lost, ended=lost if now - lost >= LOST_SECONDS else 0.0)
        return replace(self, at=now, machines=tuple(machines.values()))

    def _missing_since(self, machine: Machine, now: float) -> float:
        """Now; or, if EC2 may have forgotten it since the last look, the latest that it can have ended."""
        if now - self.at <= FORGET_SECONDS:
            return now
        latest = now - FORGET_SECONDS
        if machine.deadline:
            latest = min(latest, machine.deadline + LATE_SECONDS)
        return max(self.at, latest)

    def to_json(self) -> bytes:
        return json.dumps(asdict(self) | {"usd": round(self.usd(self.at), 4)}, indent=1).encode()

    @classmethod
    def from_json(cls, body: bytes) -> Spend:
        value = json.loads(body)
        return cls(at=value["at"], machines=tuple(Machine(**machine) for machine in value["machines"]))
