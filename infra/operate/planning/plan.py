"""What a launch is going to do: the run's spec, its estimate for each type, and whether it goes on with an existing
run.

It reads prices from AWS and the run from the bucket. It changes nothing. The command `launch` carries the plan out.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from infra.config import PREPARE_DISK_GIB, PREPARE_PREFIX, ZONES, Installation
from infra.operate.planning import datasets, disks
from infra.operate.planning.catalog import LEAST_POOLS, TYPES
from infra.operate.planning.datasets import Dataset
from infra.operate.planning.estimate import DataSize, Estimate, data_of, estimate_prepare, offered
from infra.operate.planning.options import Request, go_on, nodes_of, recipe_of, spec_values
from infra.operate.planning.prices import Prices, dated_prices, find_prices
from infra.operate.planning.refusals import (
    MOST_HOURS,
    check,
    check_classes,
    check_gpus,
    check_name,
    check_types,
    types_of,
)
from infra.operate.planning.scaling import estimate
from infra.operate.planning.work import Images, Work, work_of
from infra.operate.runs import Ending, ExplainedBucket, read_ending, read_spend
from infra.operate.session import Aws
from infra.operate.text import usd
from infra.run.spec import Spec
from trainer.contract import UserError, run_key

SPARE = 1.25  # of the default budget over the estimate: reclaimed machines stage and compile again
SECONDS_PER_HOUR = 3600.0
AT_THE_LIMIT = ", or ANYWAY=1: it stops at the limit, and goes on when it is launched with more"


class MeansError(UserError):
    """The run has less money or time than its estimate. `command` gives it enough."""

    def __init__(self, message: str, command: str) -> None:
        super().__init__(message)
        self.command = command


@dataclass(frozen=True, kw_only=True)
class Existing:
    """A run that was launched before."""

    spec: Spec
    etag: str  # of its spec.json
    spent_usd: float
    ending: Ending | None


@dataclass(frozen=True, kw_only=True)
class Plan:
    spec: Spec
    offered: list[Estimate]  # at the price to expect, cheapest image first
    prices_source: str
    spot_zones: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # as Prices has them
    usual_usd: float  # the most that the default budget and hours can be, whatever types are cheap today
    usual_hours: float
    existing: Existing | None = None
    left_out: str = ""  # a line about types without room for the data
    inherited: str = ""  # BUDGET=… HOURS=… of the existing run that nobody asked for now, and that exceed the defaults


def find_existing(bucket: ExplainedBucket, run_id: str, now: float) -> Existing | None:
    found = next(
        (one for one in bucket.list(run_key(run_id, "spec.json")) if one.key == run_key(run_id, "spec.json")), None
    )
    body = bucket.read(found.key) if found else None
    if not found or not body:
        return None
    spec = Spec.from_json(body)
    if spec.run_id != run_id:
        raise UserError(
            f"s3://{bucket.name}/{found.key} is of another run, {spec.run_id!r}: start one under another RUN="
        )
    return Existing(
        spec=spec,
        etag=found.etag,
        spent_usd=read_spend(bucket, run_id).usd(now),
        ending=read_ending(bucket, run_id),
    )


def make_plan(
    aws: Aws | None, installation: Installation, bucket: ExplainedBucket | None, request: Request, now: float
) -> Plan:
    """Plan a launch. `bucket` is None before the first deploy; without `aws`, prices are those of the dated tables.

    Raises UserError if the request is not possible.
    """
    check(request, installation)
    asked = request
    existing = find_existing(bucket, request.run_id, now) if bucket and request.run_id else None
    if existing:
        request = merge(request, existing)
        check_types(asked, existing.spec, installation)
    # The spec lies in the bucket, where others may have written it; and now the recipe is known.
    check(replace(request, recipe=recipe_of(request)) if request.kind == "train" else request, installation)
    check_name(request)
    check_gpus(request, installation)
    types = types_of(request, installation)
    prices = find_prices(aws, types) if aws else dated_prices(types)
    dataset = find_dataset(bucket, request) if bucket and request.kind == "train" else None
    if dataset and not existing:
        request = replace(request, data=dataset.uri)
    if dataset:
        check_classes(request, dataset)
    plan = plan_run(request, installation, prices, existing, dataset, now)
    return replace(plan, inherited=inherited(asked, plan)) if existing else plan


def merge(request: Request, existing: Existing) -> Request:
    """The request for an existing run. Raises UserError if the run is finished, or would compute something else."""
    spec = existing.spec
    if existing.ending and existing.ending.how == "done":
        raise UserError(
            f"RUN={spec.run_id} is finished: `make status RUN={spec.run_id}` shows its result; for a new run leave "
            "RUN= out, or give another"
        )
    return go_on(request, spec)


def inherited(asked: Request, plan: Plan) -> str:
    """The limits of the run's spec that exceed the defaults and are not asked for now, as they would be: BUDGET=9."""
    spec, found = plan.spec, []
    if not asked.budget_usd and spec.budget_usd > plan.usual_usd:
        found.append(f"BUDGET={spec.budget_usd:g}")
    if not asked.hours and spec.hours > plan.usual_hours:
        found.append(f"HOURS={spec.hours:g}")
    return " ".join(found)


def find_dataset(bucket: ExplainedBucket, request: Request) -> Dataset | None:
    """The prepared shards of the run's data in the bucket. None if the machine must get the data elsewhere."""
    data = request.data or work_of(recipe_of(request)).data
    if data.startswith("s3://"):
        return datasets.read(bucket, data)
    return datasets.newest(bucket, data) if datasets.is_hub_id(data) else None


def estimates(
    request: Request, types: Sequence[str], dataset: Dataset | None, prices: Mapping[str, float], extras: float
) -> list[Estimate]:
    """An estimate for each type at these prices, the cheapest per image first."""
    if request.kind == "prepare":
        return estimate_prepare(types, prices, extras)
    work = asked_work(request)
    if dataset:
        data = DataSize(Images(max(1, dataset.train_images), dataset.val_images), disks.staged_of(work, dataset).gb)
    else:
        data = replace(data_of(work), is_prepared=not datasets.is_hub_id(work.data))
    return estimate(work, types, prices, data, extras, nodes_of(request))


def plan_run(
    request: Request, installation: Installation, prices: Prices, existing: Existing | None, dataset: Dataset | None,
    now: float,
) -> Plan:  # fmt: skip
    """Fill in everything that the request leaves open. Raises UserError if money or time is below the estimate."""
    market = request.market or installation.market
    zones = len(found.split(",")) if (found := request.zone or installation.zones or installation.subnet_ids) else ZONES
    types, left_out = types_with_room(request, installation, dataset)
    recipe, is_training = recipe_of(request), request.kind == "train"
    extras = prices.extras_usd_per_hour(int(installation.disk_gib) if is_training else PREPARE_DISK_GIB)
    expected, listed = (
        estimates(request, types, dataset, prices.expected(one), extras) for one in (market, "on-demand")
    )
    if nodes_of(request) > 1:  # the machines of one run need the same GPUs
        best = TYPES[expected[0].type]
        expected = [one for one in expected if TYPES[one.type].all_gpus == best.all_gpus]
        zones = LEAST_POOLS  # so that no type counts that is much dearer, as the ones with a slow network are
    chosen = expected if request.types else offered(expected, zones)
    names = {one.type for one in chosen}
    dearest = max(one.usd for one in listed if one.type in names)
    name = recipe if is_training else f"{PREPARE_PREFIX}{datasets.slug(request.data)}"
    filled = {
        "run_id": request.run_id or new_run_id(name, now),
        "kind": request.kind,
        "recipe": recipe if is_training else "",
        "arguments": (recipe, *request.arguments) if is_training else request.arguments,
        "market": market,
        "budget_usd": request.budget_usd or default_usd(dearest),
        "hours": request.hours or default_hours(max(one.hours for one in chosen)),
        "created": existing.spec.created if existing else now,
        "deadline": 0.0,
        "prices": dict(prices.on_demand),
        "prices_source": prices.source,
        "extras_usd_per_hour": extras,
        "nodes": nodes_of(request),
    }
    spec = Spec(**(spec_values(request) | filled))
    spec = replace(spec, deadline=now + spec.hours * SECONDS_PER_HOUR)
    plan = Plan(
        spec=spec, offered=chosen, prices_source=prices.source, spot_zones=prices.spot_zones, existing=existing,
        usual_usd=default_usd(max(one.usd for one in listed)),
        usual_hours=default_hours(max(one.hours for one in listed)), left_out=left_out,
    )  # fmt: skip
    check_means(plan, anyway=request.anyway)
    return plan


def types_with_room(
    request: Request, installation: Installation, dataset: Dataset | None
) -> tuple[tuple[str, ...], str]:
    """The types whose disk holds the run's data, and a line about the others. Raises RoomError if none is left."""
    types, disk_gib = types_of(request, installation), int(installation.disk_gib)
    if request.kind == "prepare":
        return types, ""
    work = asked_work(request)
    staged = disks.staged_of(work, dataset)
    return disks.choose_types(request.types, types, work, staged, disk_gib), disks.left_out(types, staged, disk_gib)


def asked_work(request: Request) -> Work:
    """What a training computes, on the data that was asked for."""
    work = work_of(recipe_of(request), request.arguments)
    return replace(work, data=request.data or work.data)


def default_usd(estimate_usd: float) -> float:
    return float(math.ceil(SPARE * estimate_usd))


def default_hours(estimate_hours: float) -> float:
    return min(MOST_HOURS, 2 * estimate_hours)


def check_means(plan: Plan, *, anyway: bool) -> None:
    """A new run needs the money and the time of its estimate. A run that goes on needs some money left."""
    spec, best = plan.spec, plan.offered[0]
    how = f"{count(spec.nodes, best.type)}, {spec.market}, {best.hours:.1f} h at {usd(best.usd_per_hour)}"
    if plan.existing:
        spent = plan.existing.spent_usd
        if spent < spec.budget_usd - 0.01:
            return
        short = f"RUN={spec.run_id} has spent {usd(spent)} of its budget of {usd(spec.budget_usd)}"
        fix, reason = f"RUN={spec.run_id} BUDGET={math.ceil(spent + best.usd)}", ""
    elif anyway:
        return
    elif spec.budget_usd < best.usd:
        short = f"BUDGET={spec.budget_usd:g} is below the estimate of {usd(best.usd)} ({how})"
        fix, reason = f"BUDGET={math.ceil(SPARE * best.usd)}", AT_THE_LIMIT
    elif spec.hours < best.hours:
        short = f"HOURS={spec.hours:g} is below the estimate of {best.hours:.1f} hours ({how})"
        fix, reason = f"HOURS={math.ceil(2 * best.hours)}", AT_THE_LIMIT
    else:
        return
    raise MeansError(f"{short}: use {fix}{reason}", f"make launch {fix}")


def count(nodes: int, type: str) -> str:
    return type if nodes == 1 else f"{nodes} {type}"


def new_run_id(name: str, now: float) -> str:
    """A new run id: `<name>-<date>-<4 hex>`."""
    date = f"{datetime.fromtimestamp(now, UTC):%Y%m%d}"
    return f"{datasets.slug(name)[:48]}-{date}-{secrets.token_hex(2)}"
