"""What a run plans: its learning rate and resolution over all steps, from its config alone. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.contract import UserError
from trainer.learning.schedule import Clock
from trainer.recipes.config import Config
from trainer.recipes.fields import from_json
from trainer.report.curves import MOST_POINTS, MetricCurve, curve_of

MOST_PLANNED_EPOCHS = 1_000_000  # a plan of more is no plan


def plan_of(config: Mapping[str, Any], steps_per_epoch: float | None) -> dict[str, MetricCurve]:
    """`plan/lr` and `plan/resolution` by step; {} where config or epoch is unknown, or of another version."""
    if not steps_per_epoch or not round(steps_per_epoch) >= 1 or "optim" not in config:
        return {}
    try:
        known: Config = from_json(Config, dict(config))
    except UserError:  # an older or newer version planned it
        return {}
    if not 0 < known.epochs <= MOST_PLANNED_EPOCHS:
        return {}
    clock = Clock(config=known, steps_per_epoch=round(steps_per_epoch))
    last = clock.total_steps - 1
    steps = sorted({round(i * last / (MOST_POINTS - 1)) for i in range(MOST_POINTS)})
    try:
        planned = [clock.at(step) for step in steps]
    except (ArithmeticError, ValueError):  # numbers that no trainer takes
        return {}
    places = [step + 1.0 for step in steps]  # a row counts the steps that are done
    curves = {
        "plan/lr": curve_of(places, [one.lr for one in planned]),
        "plan/resolution": curve_of(places, [float(one.resolution) for one in planned]),
    }
    return {name: curve for name, curve in curves.items() if curve is not None}
