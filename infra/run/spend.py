"""What a run has cost: the seconds of its machines, as EC2 tells them, times their prices: `runs/<run_id>/spend.json`.

The guard updates this tally every minute, since EC2 forgets a terminated machine after about an hour. No I/O here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace

from infra.run.values import check_number, check_text

LOST_SECONDS = 600  # EC2 sometimes leaves a machine out of an answer: for so long it still counts as running
FORGET_SECONDS = 3600  # for about so long EC2 shows a terminated machine
LATE_SECONDS = 600  # no machine lives longer than this past its deadline: its own timer and the schedule end it
SKEW_SECONDS = 600  # between the clocks of EC2 and of the guard, at most
BILLED_SECONDS = 60  # AWS bills each start of a Linux machine by the second, and for a minute at least
SILENT_SECONDS = 600  # if the tally is older, the guard does not run, and nobody knows which machines still do


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One EC2 instance with the run's tag. Times are Unix seconds."""

    id: str
    type: str
    zone: str
    market: str  # spot or on-demand
    launched: float
    deadline: float = 0.0  # from its tag; 0 without one
    ended: float = 0.0  # 0: it still bills
    end: str = ""  # EC2's code of why it ended, such as Server.SpotInstanceTermination; "" if unknown
    usd_per_hour: float = 0.0  # its price since `priced`
    priced: float = 0.0  # 0: since its launch
    usd_before: float = 0.0  # its cost until `priced`
    lost: float = 0.0  # since when EC2 does not show it; 0: EC2 shows it, or it has ended

    def usd(self, now: float) -> float:
        return self._usd_until(max(self.ended or now, self.launched + BILLED_SECONDS))

    def _usd_until(self, end: float) -> float:
        hours = (end - (self.priced or self.launched)) / 3600
        return max(0.0, self.usd_before + hours * self.usd_per_hour)

    def reprice(self, usd_per_hour: float, peak: float, since: float, until: float) -> Machine:
        """Sets the price from `until` on. `since` is when the old price was read; from then to `until` the highest of
        the old price, the new one and `peak` counts.
        """
        peak = max(peak, usd_per_hour, self.usd_per_hour)
        if peak == usd_per_hour == self.usd_per_hour:
            return self
        start = min(until, max(since, self.priced or self.launched))
        before = self._usd_until(start) + (until - start) / 3600 * peak
        return replace(self, usd_before=before, priced=until, usd_per_hour=usd_per_hour)


@dataclass(frozen=True, kw_only=True)
class Spend:
    """All machines that a run has had, also those that EC2 has forgotten."""

    at: float = 0.0
    machines: tuple[Machine, ...] = field(default=())

    def usd(self, now: float) -> float:
        """Dollars that are known to be spent. If the tally is old, they count until shortly after it was made."""
        return self.usd_at_most(self.until(now))

    def usd_at_most(self, now: float) -> float:
        """Dollars if every machine that is not known to have ended still bills. A budget must use this figure."""
        return sum(machine.usd(now) for machine in self.machines)

    def until(self, now: float) -> float:
        return min(now, self.at + SILENT_SECONDS) if self.at else now

    @property
    def open(self) -> tuple[Machine, ...]:
        """The machines that are not known to have ended."""
        return tuple(machine for machine in self.machines if not machine.ended)

    def usd_per_hour(self) -> float:
        """Dollars per hour that are being spent now."""
        return sum(machine.usd_per_hour for machine in self.open)

    def priced_until(self, id: str, launched: float) -> float:
        """Until when the tally knows the prices of this machine: a price may have changed since then."""
        known = next((machine for machine in self.machines if machine.id == id), None)
        return max(launched, min(self.at, known.ended or self.at)) if known else launched

    def tally(self, seen: Iterable[Machine], now: float, peaks: Mapping[str, float]) -> Spend:
        """Updates the tally with the machines that EC2 shows at `now`, with their ends and prices.

        `peaks` has the most that machines cost an hour since `priced_until`, by id: for that time they are charged it.

        A machine that EC2 does not show bills on until it has been missing for LOST_SECONDS. Then it counts as ended
        from the moment when it was first missing. If EC2 shows it again, it bills as if it had never been missing.

        If the last tally is very old, EC2 may have forgotten a machine. Then the machine is charged for the longest
        time that it can have lived.
        """
        machines = {machine.id: machine for machine in self.machines}
        unseen = set(machines)
        for machine in seen:
            unseen.discard(machine.id)
            known = machines.get(machine.id) or replace(machine, ended=0.0)
            if machine.ended and known.ended and not known.lost:
                machines[machine.id] = replace(known, ended=machine.ended, end=machine.end or known.end)
                continue
            peak, since = peaks.get(machine.id, 0.0), self.priced_until(machine.id, machine.launched)
            running = replace(known, ended=0.0, lost=0.0)
            running = running.reprice(machine.usd_per_hour, peak, since, machine.ended or now)
            machines[machine.id] = replace(running, ended=machine.ended, end=machine.end)
        for id in unseen:
            if not (known := machines[id]).ended:
                known = known.reprice(known.usd_per_hour, peaks.get(id, 0.0), self.at, now)
                lost = known.lost or self._missing_since(known, now)
                machines[id] = replace(known, lost=lost, ended=lost if now - lost >= LOST_SECONDS else 0.0)
        return replace(self, at=now, machines=tuple(machines.values()))

    def _missing_since(self, machine: Machine, now: float) -> float:
        """Now. If EC2 may have forgotten the machine since the last tally, its latest possible end."""
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
        """Raises ValueError, TypeError or KeyError if it is damaged: numbers are finite, none is below 0."""
        value = json.loads(body)
        at = check_number("at", value["at"])
        return cls(at=at, machines=tuple(_believable(Machine(**machine), at) for machine in value["machines"]))


def _believable(machine: Machine, at: float) -> Machine:
    for name in ("id", "type", "zone", "market", "end"):
        check_text(name, getattr(machine, name))
    for name in ("launched", "deadline", "ended", "usd_per_hour", "usd_before", "lost"):
        check_number(name, getattr(machine, name))
    check_number("priced", machine.priced, at + SKEW_SECONDS)  # one of the future would make the machine cheaper
    return machine
