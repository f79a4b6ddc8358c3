"""The options of `launch`, `preflight` and `deploy`, and what `prepare` shares with them; as a Request."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import replace
from typing import Any

from infra.operate.planning.plan import Request


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--recipe", default="", help="what to train (default: finetune)")
    add("--data", default="", help="Hugging Face id or s3://… (default: the recipe's own, its prepared form first)")
    add("--args", default="", metavar='"--epochs 4"', help="options of the recipe")
    configure_limits(parser)


def configure_limits(parser: argparse.ArgumentParser) -> None:
    """What training and preparing have in common."""
    add = parser.add_argument
    add("--run", default="", dest="run_id", metavar="RUN", help="the run's name; an unfinished run goes on")
    add("--hours", type=float, default=0.0, help="stop after so long (default: twice the estimate)")
    add("--budget", type=float, default=0.0, metavar="USD", help="stop at so much (default: 1.25 times the estimate)")
    add("--market", default="", help="spot or on-demand (default: the installation's)")
    add("--types", default="", help="only these instance types, by ','")
    add("--on-demand-after", type=float, default=0.0, metavar="MINUTES", help="change to on-demand without a machine")
    add("--anyway", action="store_true", help="also with less money or time than the estimate")


def limits_of(given: argparse.Namespace) -> dict[str, Any]:
    """The fields of a Request that `configure_limits` made options for."""
    return {
        "run_id": given.run_id,
        "hours": given.hours,
        "budget_usd": given.budget,
        "market": given.market,
        "types": tuple(filter(None, given.types.split(","))),
        "on_demand_after_minutes": given.on_demand_after,
        "anyway": given.anyway,
    }


def request_of(given: argparse.Namespace) -> Request:
    return Request(
        recipe=given.recipe,
        data=given.data,
        arguments=tuple(shlex.split(given.args)),
        **limits_of(given),
    )


def without_limits(request: Request) -> Request:
    """For an estimate, which no budget and no deadline refuse."""
    return replace(request, hours=0.0, budget_usd=0.0)
