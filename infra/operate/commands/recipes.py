"""`recipes`: what each recipe promises, and what it would cost on each type of machine. Needs no account.

Prices are today's where AWS can be asked, else those of dated tables. Everything else comes from files of the checkout.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from infra.config import Installation
from infra.operate.command_line import CommandLine
from infra.operate.planning import catalog, disks
from infra.operate.planning.estimate import Estimate, StageSpeed
from infra.operate.planning.options import by_commas
from infra.operate.planning.prices import Prices, quick_prices
from infra.operate.planning.scaling import estimate
from infra.operate.planning.work import Work, check_recipe, recipes, work_of
from infra.operate.session import Aws, ExitCode
from infra.operate.terminal import display, display_json, next_commands, styled, table

HELP = "list the recipes: promised accuracy, epochs, images/s, hours and dollars for each type of machine"
MOST_STAGES = 3  # that a cell shows
COLUMNS = (
    "recipe", "top-1 %", "at px", "epochs", "of 224 px", "type", "images/s to feed, by px", "hours", "spot $",
    "on-demand $", "speed",
)  # fmt: skip
FOOTNOTES = (
    "hours and dollars: start, copy of prepared data, compiling, training, validation, disk and address; not the\n"
    "  checkpoints in the bucket (make cost), and no reclaimed machine, which copies and compiles again.\n"
    "  A recipe without images of its own counts as many as ImageNet has",
    "speed: measured on this GPU; table of catalog.py, published or derived; projected from either, by area of the\n"
    "  image, compiler, network or parts. images/s with * are more than the machine decodes: then that counts",
)


@dataclass(frozen=True)
class Offer:
    """One recipe on one type: dollars in each market, None where nobody tells the price."""

    estimate: Estimate
    spot_usd: float | None
    on_demand_usd: float


def configure(parser: CommandLine) -> None:
    parser.option("recipe", "only this one, on every type", default="")
    parser.option("types", "only these instance types, by ','", default=(), type=by_commas)
    parser.json_option()


def run(aws: Aws, installation: Installation, given: argparse.Namespace) -> int:
    if given.recipe:
        check_recipe(given.recipe)
    types = [one.name for one in catalog.gpu_types(given.types or [n for n, one in catalog.TYPES.items() if one.gpu])]
    prices = quick_prices(aws.session, types)
    types = [name for name in types if name in prices.told or not prices.told]
    extras = prices.extras_usd_per_hour(int(installation.disk_gib))
    works = [work_of(name) for name in ([given.recipe] if given.recipe else recipes())]
    offers = {work.recipe: offers_of(work, types, prices, extras) for work in works}
    if given.json:
        documents = [recipe_document(work, offers[work.recipe], int(installation.disk_gib)) for work in works]
        display_json({"prices_source": prices.source, "recipes": documents})
        return ExitCode.DONE
    left_out = left_out_of(works, offers, int(installation.disk_gib))
    offers = {work.recipe: fitting(work, offers[work.recipe], int(installation.disk_gib)) for work in works}
    shown = {name: found if given.recipe or given.types else cheapest(found) for name, found in offers.items()}
    rows = [row for work in works for row in rows_of(work, shown[work.recipe])]
    display(table(rows, COLUMNS), *left_out, styled("\n".join((prices.source, *FOOTNOTES)), "dim"))
    next_commands(
        ("make recipes RECIPE=…", "one recipe on every type; ARGS=--json for all of them"),
        ("make recipes RECIPE=… ARGS=--help", "what it is, and its options"),
        ("make train RECIPE=…", "train on this machine"),
        ("make launch RECIPE=…", "train on AWS; says the price before"),
    )
    return ExitCode.DONE


def offers_of(work: Work, types: Sequence[str], prices: Prices, extras: float) -> list[Offer]:
    """The recipe on each type that computes in its precision, the cheapest first."""
    able = [name for name in types if work.precision != "bf16" or catalog.GPUS[catalog.TYPES[name].gpu].has_bf16]
    listed = estimate(work, able, prices.on_demand, extras_usd_per_hour=extras) if able else []
    found = [Offer(one, _spot_usd(one, prices, extras), one.usd) for one in listed]
    return sorted(found, key=lambda one: min(one.on_demand_usd, one.spot_usd or one.on_demand_usd))


def _spot_usd(one: Estimate, prices: Prices, extras: float) -> float | None:
    price = prices.spot.get(one.type)
    return None if price is None else one.hours * (price + extras)


def fitting(work: Work, offers: Sequence[Offer], disk_gib: int) -> list[Offer]:
    """Those whose machine has room for the data."""
    names = disks.with_room([one.estimate.type for one in offers], disks.projected(work), disk_gib)
    return [one for one in offers if one.estimate.type in names]


def left_out_of(works: Sequence[Work], offers: Mapping[str, Sequence[Offer]], disk_gib: int) -> list[str]:
    """A line about the types that are not shown, as they lack room for the data of a recipe. None if all have it."""
    said = []
    for work in works:
        staged = disks.projected(work)
        names = [one.estimate.type for one in offers[work.recipe]]
        said += [(staged.gb, one) for one in names if one not in disks.with_room(names, staged, disk_gib)]
    if not said:
        return []
    needs = " to ".join(dict.fromkeys(f"{gb:.0f}" for gb in (min(said)[0], max(said)[0])))
    rooms = ", ".join(disks.show_room(name, disk_gib) for name in dict.fromkeys(name for _, name in said))
    return [f"not shown, as the disk has no room for the prepared data of {needs} GB: {rooms}"]


def cheapest(offers: Sequence[Offer]) -> list[Offer]:
    """The two cheapest types, and the cheapest one on demand."""
    return list(dict.fromkeys([*offers[:2], *sorted(offers, key=lambda one: one.on_demand_usd)[:1]]))


def rows_of(work: Work, offers: Sequence[Offer]) -> Iterable[tuple[str, ...]]:
    promise = work.promise
    said = (f"{promise.top1:.2f}", f"{promise.pixels}") if promise else ("–", "–")
    first: tuple[str, ...] = (work.recipe, *said, f"{work.epochs}", f"{work.full_epochs:.1f}")
    for offer in offers:
        one = offer.estimate
        spot = "–" if offer.spot_usd is None else f"{offer.spot_usd:.2f}"
        yield (*first, one.type, feed(one.stages), f"{one.hours:.1f}", spot, f"{offer.on_demand_usd:.2f}", one.source)
        first = ("",) * len(first)


def feed(stages: Sequence[StageSpeed]) -> str:
    """What the loader must give at each size of images. Of many sizes, the ends are shown."""
    cells = [f"{one.pixels}: {one.wanted:,.0f}{'*' * (one.wanted > one.fed)}" for one in stages]
    return ", ".join(cells) if len(cells) <= MOST_STAGES else f"{cells[0]} … {cells[-1]}"


def recipe_document(work: Work, offers: Sequence[Offer], disk_gib: int) -> dict[str, Any]:
    """What `--json` prints of a recipe. Fields are added, never renamed."""
    roomy = {one.estimate.type for one in fitting(work, offers, disk_gib)}
    return {
        "recipe": work.recipe, "promise": asdict(work.promise) if work.promise else None, "epochs": work.epochs,
        "full_epochs": work.full_epochs, "stages": [[stage.pixels, stage.epochs] for stage in work.stages],
        "types": [
            asdict(one.estimate)
            | {"spot_usd": one.spot_usd, "on_demand_usd": one.on_demand_usd, "has_room": one.estimate.type in roomy}
            for one in offers
        ],
    }  # fmt: skip
