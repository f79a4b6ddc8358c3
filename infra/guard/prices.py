"""What the machines of a run cost an hour, as EC2 tells it, and the tally of what they have cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from infra.run.fleet import SPOT, FleetMachine
from infra.run.spec import Spec
from infra.run.spend import Machine, Spend
from infra.run.values import printable


@dataclass(frozen=True)
class Price:
    """Dollars per hour of one machine."""

    now: float
    peak: float  # the highest since the tally's last look at the machine, or since its launch


class SpotHistory:
    """The spot prices of pools, a type in a zone each, during one tick.

    After a request without an answer EC2 is not asked for any again: a tick has a minute, and a run up to 16 machines.
    """

    def __init__(self, ec2: Any):
        self.ec2, self.silence = ec2, ""

    def changes(self, type: str, zone: str, since: float) -> list[tuple[float, float]]:
        """Time and dollars of each change since then, and of the last one before, which was in force, oldest first.

        Empty if EC2 does not tell (DescribeSpotPriceHistory).
        """
        if self.silence:
            return []
        try:
            history = self.ec2.describe_spot_price_history(
                InstanceTypes=[type], AvailabilityZone=zone, ProductDescriptions=["Linux/UNIX"],
                StartTime=datetime.fromtimestamp(since, UTC),
            )["SpotPriceHistory"]  # fmt: skip
            return sorted((one["Timestamp"].timestamp(), float(one["SpotPrice"])) for one in history)
        except Exception as error:  # noqa: BLE001  # a budget must hold without it
            if not hasattr(error, "response"):  # EC2 did not answer
                self.silence = str(error)
            print(printable(f"no spot price of {type} in {zone}: {error}"))
            return []


def price(history: SpotHistory, spec: Spec, spend: Spend, machines: Iterable[FleetMachine]) -> dict[str, Price]:
    """The price of each machine that EC2 shows, or that still bills by the tally.

    It is EC2's spot price, or else the spec's list price, which is higher. EC2 is asked once for each pool.
    """
    prices = {one.id: Price(one.usd_per_hour, one.usd_per_hour) for one in spend.machines if one.ended and not one.lost}
    shown = {machine.id: machine for machine in machines}
    unpriced: list[FleetMachine | Machine] = [one for one in shown.values() if one.is_billing or one.id not in prices]
    unpriced += [one for one in spend.open if one.id not in shown]
    since = {one.id: spend.priced_until(one.id, one.launched) for one in unpriced}
    first: dict[tuple[str, str], float] = {}
    for machine in unpriced:
        if machine.market == SPOT:
            pool = machine.type, machine.zone
            first[pool] = min(since[machine.id], first.get(pool, math.inf))
    changes = {pool: history.changes(*pool, at) for pool, at in first.items()}
    for machine in unpriced:
        # A type that the spec does not list is charged like the dearest that it lists.
        listed = spec.prices.get(machine.type) or max(spec.prices.values())
        told = changes.get((machine.type, machine.zone), []) if machine.market == SPOT else []
        found, extras = _price_since(told, since[machine.id]) or Price(listed, listed), spec.extras_usd_per_hour
        prices[machine.id] = Price(found.now + extras, found.peak + extras)
    return prices


def _price_since(changes: Sequence[tuple[float, float]], since: float) -> Price | None:
    """The price of now, and the highest since then; None if there is none. The last change before is in force then."""
    before = max((at for at, _ in changes if at <= since), default=0.0)
    dollars = [usd for at, usd in changes if at >= before]
    return Price(dollars[-1], max(dollars)) if dollars else None


def tally(spend: Spend, machines: Iterable[FleetMachine], prices: Mapping[str, Price], now: float) -> Spend:
    """Updates the tally with the machines that EC2 shows. A machine whose end EC2 does not tell ended now."""
    known = {machine.id: machine for machine in spend.machines}
    return spend.tally(
        [
            Machine(
                id=machine.id, type=machine.type, zone=machine.zone, market=machine.market, launched=machine.launched,
                deadline=machine.deadline,
                ended=0.0 if machine.is_billing else machine.ended or _ended_by(known.get(machine.id), now),
                end=machine.end,
                usd_per_hour=prices[machine.id].now,
            )
            for machine in machines
        ],
        now,
        {id: found.peak for id, found in prices.items()},
    )  # fmt: skip


def _ended_by(known: Machine | None, now: float) -> float:
    return known.ended if known and known.ended else now
