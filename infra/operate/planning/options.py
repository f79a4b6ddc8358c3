"""The options of a run. Each is one field of Request. The field declares the flag, the variable of `make`, the help and
the field of the spec.

The command line, the spec, and what a run that goes on may change, all follow from the field. So a new option is one
line.
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

from infra.operate.command_line import CommandLine
from infra.run.spec import Spec
from trainer.contract import UserError

KINDS = ("train", "prepare")
DEFAULT_RECIPE = "finetune"
METADATA = "option"
ACCEPT_CHANGES = "--checkpoint.accept-changes"  # an option of the recipe: its other options may differ from before


@dataclass(frozen=True, kw_only=True)
class Option:
    """One thing that the user can ask of a run."""

    name: str  # `on-demand-after`: the flag --on-demand-after, the variable ON_DEMAND_AFTER=
    help: str
    default: Any = ""
    parse: Callable[[str], Any] = str
    show: Callable[[Any], str] = str
    metavar: str | None = None
    kinds: tuple[str, ...] = KINDS  # of the runs that have it
    spec: str = ""  # the field of Spec that keeps it; "" for none
    stays: bool = False  # it says what is computed: a run that goes on cannot change it

    @property
    def variable(self) -> str:
        return self.name.upper().replace("-", "_")


def option(name: str, help: str, **rest: Any) -> Any:
    """Declare a field of Request that is an option."""
    declared = Option(name=name, help=help, **rest)
    return field(default=declared.default, metadata={METADATA: declared})


def words(text: str) -> tuple[str, ...]:
    """Split a text into words, as a shell does."""
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of words ({error}): close the quote") from error


def by_commas(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def minutes(text: str) -> float:
    """The minutes in 30m or 2h. Raises argparse.ArgumentTypeError."""
    if not (found := re.fullmatch(r"([0-9]{1,4})([mh])", text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no time: give minutes or hours, 30m or 2h")
    return float(found[1]) * (60 if found[2] == "h" else 1)


def parse_nodes(text: str) -> int:
    """A number of machines. 0 would mean that none was given. Raises argparse.ArgumentTypeError."""
    if not re.fullmatch(r"-?[0-9]{1,9}", text) or not (number := int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of machines: give 1 or more, such as NODES=2")
    return number


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for. A field is "", 0 or () if the user gave nothing."""

    kind: str = "train"  # by the command
    recipe: str = option("recipe", "what to train (default: finetune)", kinds=("train",), spec="recipe", stays=True)
    data: str = option(
        "data",
        "Hugging Face id or s3://… (default: the recipe's own, its prepared form first)",
        spec="data",
        stays=True,
    )
    arguments: tuple[str, ...] = option(
        "args", "options of the recipe, or of the preparation", default=(), parse=words, show=shlex.join,
        metavar='"--epochs 4"', spec="arguments", stays=True,
    )  # fmt: skip
    run_id: str = option("run", "the run's name; if that run is unfinished, it goes on", metavar="RUN")
    hours: float = option(
        "hours", "stop after so many hours (default: twice the estimate)", default=0.0, parse=float, spec="hours"
    )
    budget_usd: float = option(
        "budget", "stop at so many dollars (default: 1.25 times the estimate)", default=0.0, parse=float,
        metavar="USD", spec="budget_usd",
    )  # fmt: skip
    market: str = option("market", "spot or on-demand (default: the installation's)", spec="market")
    types: tuple[str, ...] = option(
        "types", "only these instance types, by ','", default=(), parse=by_commas, show=",".join, spec="types"
    )
    on_demand_after_minutes: float = option(
        "on-demand-after", "change to on-demand after so many minutes without a machine", default=0.0, parse=float,
        metavar="MINUTES", kinds=("train",), spec="on_demand_after_minutes",
    )  # fmt: skip
    keep_minutes: float = option(
        "keep", "if the run fails, keep its machine so long for `make shell` (default: not)", default=0.0,
        parse=minutes, show="{:g}m".format, metavar="30m", spec="keep_minutes",
    )  # fmt: skip
    nodes: int = option(
        "nodes", "how many machines train the run, all in one zone (default: 1)", default=0, parse=parse_nodes,
        metavar="N", kinds=("train",), spec="nodes",
    )  # fmt: skip
    zone: str = option(
        "zone", "only machines of this zone (default: all zones; of several nodes the cheapest one)", kinds=("train",),
        spec="zone",
    )  # fmt: skip
    anyway: bool = option("anyway", "launch even if money or time is below the estimate", default=False, parse=bool)


def recipe_of(request: Request) -> str:
    return request.recipe or DEFAULT_RECIPE


def nodes_of(request: Request) -> int:
    """How many machines the request is for. A run that goes on has been given those of its spec (`go_on`)."""
    return request.nodes or 1


def options_of(request: Request | type[Request], kind: str = "") -> list[tuple[str, Option]]:
    """The name of each field and its option: of all, or only of those that a run of this kind has."""
    found = [(one.name, one.metadata[METADATA]) for one in fields(request) if METADATA in one.metadata]
    return [(name, one) for name, one in found if kind in ("", *one.kinds)]


def configure(parser: CommandLine, kind: str = "train") -> None:
    for name, one in options_of(Request, kind):
        if one.parse is bool:
            parser.option(one.name, one.help, dest=name, action="store_true")
        else:
            parser.option(one.name, one.help, dest=name, type=one.parse, default=one.default, metavar=one.metavar)


def request_of(given: argparse.Namespace, kind: str = "train") -> Request:
    return Request(kind=kind, **{name: getattr(given, name) for name, _ in options_of(Request, kind)})


def request_and_json(given: argparse.Namespace) -> tuple[Request, bool]:
    """The request, and whether to print JSON. ARGS= holds options of the recipe, but `--json` may stand among them."""
    request = request_of(given)
    rest = tuple(word for word in request.arguments if word != "--json")
    return replace(request, arguments=rest), given.json or rest != request.arguments


def spec_values(request: Request) -> dict[str, Any]:
    """The values of a request, by the field of the spec that keeps them."""
    return {one.spec: getattr(request, name) for name, one in options_of(request) if one.spec}


def may_change(name: str, new: Any, old: Any) -> bool:
    """What the trainer lets a run change: its options if it is asked to, and its data to one commit of the same."""
    if name == "arguments":
        return ACCEPT_CHANGES in new
    return name == "data" and str(new).partition("@")[0] == str(old).partition("@")[0]


def go_on(request: Request, spec: Spec) -> Request:
    """The request for a run that exists. The run keeps what it computes; its limits and machines may change."""
    kept = {name: getattr(spec, one.spec) for name, one in options_of(request) if one.spec}
    if spec.kind == "train":
        kept["arguments"] = spec.arguments[1:]  # the recipe comes first
    for name, one in options_of(request):
        new, old = getattr(request, name), kept.get(name)
        if one.spec and new != one.default:
            if one.stays and new != old and not may_change(name, new, old):
                raise UserError(
                    f"{one.variable}={one.show(new)!r} is not what RUN={spec.run_id} was started with "
                    f"({one.show(old)!r}): leave {one.variable}= out to go on with it, or give another RUN="
                )
            kept[name] = new
    return replace(request, kind=spec.kind, **kept)


def changes_limits(request: Request) -> bool:
    """Whether the request gives a limit or a machine type of its own."""
    return any(one.spec and not one.stays and getattr(request, n) != one.default for n, one in options_of(request))


def without_limits(request: Request) -> Request:
    """The request without budget and hours, so that an estimate is never refused."""
    return replace(request, hours=0.0, budget_usd=0.0)
