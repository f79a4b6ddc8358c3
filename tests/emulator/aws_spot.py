"""Spot prices, and why machines end, in the emulator: what moto 5.2.5 lacks of them. Each function that patches says
which gap it closes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from moto.core.responses import ActionResult
from moto.ec2.models import ec2_backends
from moto.ec2.models.instances import Instance, StateReason
from moto.ec2.responses.spot_instances import SpotInstances

from tests.emulator.aws_control import SETTINGS

SPOT_SHARE = 0.4  # of the on-demand price, where a test says nothing else


def patch() -> dict[str, Callable[[], None]]:
    spot_prices()
    machines_end_for_a_reason()
    return {}


def spot_prices() -> None:
    """moto's spot price is the same for all, of the year 2006, and there is no other before or after."""

    def changes_of(kind: str, since: float) -> list[list[float]]:
        """The changes since then, and the last one before it, which was in force; the newest first, as EC2 tells."""
        known = SETTINGS.spot_usd.get(kind) or [[0.0, SETTINGS.on_demand_usd[kind] * SPOT_SHARE]]
        before = [change for change in known if change[0] <= since][-1:]
        return [*before, *(change for change in known if change[0] > since)][::-1]

    def times(pool: dict[str, str]) -> float:
        return SETTINGS.zone_usd.get(pool["Location"], 1.0)

    def history(self: SpotInstances) -> ActionResult:
        backend = ec2_backends[self.current_account][self.region]
        offered = backend.describe_spot_price_history(
            self._get_param("InstanceTypes", []), self._filters_from_querystring()
        )
        since = datetime.fromisoformat(str(self._get_param("StartTime"))).timestamp()
        found = [
            {
                "InstanceType": pool["InstanceType"], "AvailabilityZone": pool["Location"],
                "ProductDescription": "Linux/UNIX", "SpotPrice": f"{usd * times(pool):.6f}",
                "Timestamp": datetime.fromtimestamp(at, UTC),
            }
            for pool in offered
            if pool["InstanceType"] in SETTINGS.on_demand_usd
            for at, usd in changes_of(pool["InstanceType"], since)
        ]  # fmt: skip
        return ActionResult({"SpotPriceHistory": found})

    SpotInstances.describe_spot_price_history = history


def machines_end_for_a_reason() -> None:
    """With moto every machine ends since a user asked."""
    terminate = Instance.terminate

    def terminated(self: Instance) -> Any:
        before = terminate(self)
        self.state_reason = StateReason(f"{SETTINGS.end_reason}: simulated", SETTINGS.end_reason)
        return before

    Instance.terminate = terminated
