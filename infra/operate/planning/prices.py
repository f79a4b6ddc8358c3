"""What machines cost now, by the Pricing API and the spot market, or else by the catalogue's table."""

from __future__ import annotations

import getpass
import json
import queue
import threading
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from statistics import median
from typing import Any

import boto3
import botocore.exceptions
from botocore.config import Config

from infra.operate.planning.catalog import (
    ADDRESS_USD_PER_HOUR,
    DISK_USD_PER_GIB_MONTH,
    HOURS_PER_MONTH,
    PRICES_SOURCE,
    SPOT_PRICES,
    SPOT_SOURCE,
    TYPES,
)
from infra.operate.session import Aws

QUICK = Config(
    connect_timeout=3, read_timeout=6, max_pool_connections=32, retries={"mode": "standard", "max_attempts": 1}
)
CREDENTIALS_SECONDS = 1.0  # a role of a machine needs no longer; elsewhere its address does not answer at all
PRICES_SECONDS = 8.0
UNREACHABLE = (
    botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError, OSError, EOFError, getpass.GetPassWarning,
)  # fmt: skip


@dataclass(frozen=True)
class Prices:
    """Dollars per hour by type, and where they come from, with the date."""

    on_demand: Mapping[str, float]
    spot: Mapping[str, float]  # the middle one of the zones' present prices; empty where AWS did not tell
    source: str
    spot_zones: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # by type and zone: all that AWS told
    told: frozenset[str] = frozenset()  # the types whose list price AWS told now: it sells them in this region
    disk_usd_per_gib_month: float = DISK_USD_PER_GIB_MONTH  # gp3

    def expected(self, market: str) -> dict[str, float]:
        """Dollars per hour by type: the spot price if it is wanted and known, else the list price, which is higher."""
        return {**self.on_demand, **self.spot} if market == "spot" else dict(self.on_demand)

    def extras_usd_per_hour(self, disk_gib: int) -> float:
        """What a machine costs beside its own price: its root volume and its public address."""
        return disk_gib * self.disk_usd_per_gib_month / HOURS_PER_MONTH + ADDRESS_USD_PER_HOUR


def find_prices(aws: Aws, types: Collection[str]) -> Prices:
    pricing, ec2 = _clients(aws.session)
    with ThreadPoolExecutor(len(types) + 2) as pool:
        history, disk = pool.submit(_spot, ec2, types), pool.submit(_gp3, pricing, aws.region)
        listed = dict(zip(types, pool.map(lambda type: _on_demand(pricing, aws.region, type), types), strict=True))
        spot_zones, disk_usd = history.result(), disk.result()
    spot = {type: median(found.values()) for type, found in spot_zones.items()}
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    table = {type: TYPES[type].usd_per_hour for type in types}
    told = {type: price for type, price in listed.items() if price is not None}
    if told:
        source = f"list prices: AWS Pricing API for {aws.region}, {today}"
        if untold := [type for type in types if type not in told]:
            source += f", but of {', '.join(untold)}: {PRICES_SOURCE}"
    else:
        source = f"list prices: {PRICES_SOURCE} (the Pricing API did not answer"
        source += f"; {aws.region} has prices of its own)" if aws.region != "us-east-1" else ")"
    if disk_usd is None and aws.region != "us-east-1":
        source += "; disk: as in us-east-1"
    if spot:
        source += f"; spot prices: EC2's history for {aws.region}, {today}"
    return Prices(table | told, spot, source, spot_zones, frozenset(told), disk_usd or DISK_USD_PER_GIB_MONTH)


def dated_prices(types: Collection[str]) -> Prices:
    """The prices of the tables, with their dates, for when AWS is not asked."""
    spot = {type: SPOT_PRICES[type] for type in types if type in SPOT_PRICES}
    return Prices(
        {type: TYPES[type].usd_per_hour for type in types}, spot,
        f"list prices: {PRICES_SOURCE}; spot prices: {SPOT_SOURCE}; today's: with credentials and AWS_REGION",
    )  # fmt: skip


def quick_prices(session: boto3.Session, types: Collection[str]) -> Prices:
    """Today's prices where there are a region and credentials and AWS answers soon, else the dated ones."""
    if not session.region_name or not _within(CREDENTIALS_SECONDS, session.get_credentials):
        return dated_prices(types)
    found: Prices | None = _within(PRICES_SECONDS, lambda: find_prices(Aws(session), types))
    return found or dated_prices(types)


def _within(seconds: float, ask: Callable[[], Any]) -> Any:
    """The answer, or None if it does not come in time. A thread that still waits does not keep the process."""
    answers: queue.Queue[Future[Any]] = queue.Queue()

    def answer() -> None:
        future: Future[Any] = Future()
        try:
            future.set_result(ask())
        except Exception as error:  # noqa: BLE001  # the caller raises it, if it still waits
            future.set_exception(error)
        answers.put(future)

    threading.Thread(target=answer, daemon=True).start()
    try:
        return answers.get(timeout=seconds).result()
    except (queue.Empty, *UNREACHABLE):
        return None


@cache
def _clients(session: boto3.Session) -> tuple[Any, Any]:
    """The clients give up soon, since there is a table. us-east-1 has the prices of every region."""
    return session.client("pricing", region_name="us-east-1", config=QUICK), session.client("ec2", config=QUICK)


def _on_demand(pricing: Any, region: str, type: str) -> float | None:
    wanted = {
        "instanceType": type, "regionCode": region, "operatingSystem": "Linux", "tenancy": "Shared",
        "preInstalledSw": "NA", "capacitystatus": "Used",
    }  # fmt: skip
    return _listed(pricing, wanted, "Hrs")


def _gp3(pricing: Any, region: str) -> float | None:
    """Dollars per GiB and month of a gp3 volume. Its speed above the free part is priced as another product."""
    return _listed(pricing, {"volumeApiName": "gp3", "regionCode": region, "productFamily": "Storage"}, "GB-Mo")


def _listed(pricing: Any, wanted: Mapping[str, str], unit: str) -> float | None:
    """The list price of the product with these attributes. None where the Pricing API does not tell."""
    filters = [{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in wanted.items()]
    try:
        products = pricing.get_products(ServiceCode="AmazonEC2", Filters=filters, MaxResults=10)["PriceList"]
    except UNREACHABLE:
        return None
    prices = [
        float(dimension["pricePerUnit"]["USD"])
        for product in map(json.loads, products)
        for term in product["terms"].get("OnDemand", {}).values()
        for dimension in term["priceDimensions"].values()
        if dimension.get("unit", unit) == unit
    ]
    return max(prices, default=0.0) or None


def _spot(ec2: Any, types: Collection[str]) -> dict[str, dict[str, float]]:
    """The present spot price of each type, by zone."""
    now = datetime.now(UTC)
    try:
        history = ec2.describe_spot_price_history(
            InstanceTypes=list(types), ProductDescriptions=["Linux/UNIX"], StartTime=now, EndTime=now
        )["SpotPriceHistory"]
    except UNREACHABLE:
        return {}
    found: dict[str, dict[str, float]] = {}
    for price in history:
        found.setdefault(price["InstanceType"], {})[price["AvailabilityZone"]] = float(price["SpotPrice"])
    return found
