"""What a plan says to the user before it is carried out."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime

from infra.operate.planning.catalog import TYPES
from infra.operate.planning.plan import SECONDS_PER_HOUR, Plan
from infra.operate.planning.work import uncounted
from infra.operate.terminal import Group, RenderableType, styled, table
from infra.operate.text import duration, usd


def describe(plan: Plan) -> RenderableType:
    """The estimate for each type, where its figures come from, and what limits the run."""
    spec = plan.spec
    rows = [
        (one.type, f"{one.usd_per_hour:.3f}", f"{one.images_per_second:.0f}", f"{one.usd_per_million_images:.2f}",
         f"{one.hours:.1f}", f"{one.usd:.2f}", one.source)
        for one in plan.offered
    ]  # fmt: skip
    of_all = "$/hour" if spec.nodes == 1 else f"$/hour of {spec.nodes}"
    header = (f"type ({spec.market})", of_all, "images/s", "$/million images", "hours", "dollars", "speed")
    spent = f", of which {usd(plan.existing.spent_usd)} are spent" if plan.existing else ""
    whose = "its machine is" if spec.nodes == 1 else f"each of its {spec.nodes} machines is"
    ends = f"{datetime.fromtimestamp(spec.deadline).astimezone():%a %d %b %H:%M %Z}"
    return Group(
        table(rows, header),
        styled(f"{plan.prices_source}\n{speed_source(spec.kind)}", "dim"),
        *([plan.left_out] if plan.left_out else []),
        *hours_and_gaps(plan),
        *how_many(plan),
        f"budget    {usd(spec.budget_usd)}{spent}; at the budget everything stops",
        f"deadline  {ends}, in {duration(spec.hours * SECONDS_PER_HOUR)}; then everything stops",
        *([f"failure   {whose} kept for {duration(60 * spec.keep_minutes)}"] if spec.keep_minutes else []),
    )


def hours_and_gaps(plan: Plan) -> list[str]:
    """What the hours of the cheapest type go to, and which options the estimate does not count."""
    if plan.spec.kind == "prepare":
        return []
    best = plan.offered[0]
    parts = [f"{name} {duration(SECONDS_PER_HOUR * hours)}" for name, hours in asdict(best.of_hours).items() if hours]
    found = [f"hours     {best.type}: {', '.join(parts)}"]
    if options := uncounted(plan.spec.arguments):
        found.append(f"not counted: {', '.join(options)}; with it the run may take longer, so give HOURS= and BUDGET=")
    return found


def how_many(plan: Plan) -> list[str]:
    """How many machines and GPUs there are, and how much faster than one; nothing where there is one."""
    nodes, best = plan.spec.nodes, plan.offered[0]
    gpus, said = TYPES[best.type].gpus if plan.spec.kind == "train" else 1, []
    if nodes * gpus == 1:
        return []
    share = f"{100 * best.efficiency:.0f} % of {nodes * gpus} times one GPU, by the model of docs/scaling.md"
    said += [f"machines  {nodes} at once, in one zone"] if nodes > 1 else []
    return [*said, f"GPUs      {nodes * gpus} in {nodes} {best.type}: {share}"]


def speed_source(kind: str) -> str:
    if kind == "prepare":
        return "images/s: from a measured 329 per core and 50 MB/s of download, an assumption; for ImageNet"
    return (
        "images/s: not measured by this project on these machines, unless the row says so; "
        "table: of catalog.py, with its source; projected: from either, by area, compiler or network"
    )
