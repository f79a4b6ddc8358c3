"""The command line of a recipe: `<recipe> [--option value …]` becomes a config, or a message with exit code 78.

torch is not imported here, so that `--help` and a mistyped option answer at once.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from argparse import ArgumentError, ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from trainer.contract import Exit, RunEnv, UserError
from trainer.recipes.config import Config
from trainer.recipes.named import RECIPES, default_data
from trainer.recipes.rules import checked
from trainer.recipes.scale import lasting, scaled
from trainer.text import forgive_output, tell


@dataclass(frozen=True, kw_only=True)
class Typed:
    """What one types: a config, and a short form of several of its options."""

    size: int  # training pixels after the ramp; all other sizes follow, those of validation, too
    config: Annotated[Config, tyro.conf.arg(name="")]


def command_line(prog: str, argv: Sequence[str]) -> Config:
    """`<recipe> [--option value …]` as a config. `--help` prints and exits 0; usage errors raise UserError."""
    if argv and not argv[0].startswith("-") and argv[0] not in RECIPES:
        raise UserError(f"recipe {argv[0]!r} is unknown: choose one of {', '.join(RECIPES)} (RECIPE=digits)")
    configs = {name: followed(recipe(), argv if [*argv[:1]] == [name] else ()) for name, recipe in RECIPES.items()}
    choices = {name: (inspect.cleandoc(RECIPES[name].__doc__ or ""), typed) for name, typed in configs.items()}
    try:
        typed = tyro.extras.overridable_config_cli(choices, prog=prog, args=list(argv))
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(f"these options are not understood: see `{' '.join([prog, *argv[:1]])} --help`") from stop
    if (recipe := typed.config.recipe) != argv[0]:
        raise UserError(
            f"--recipe is {recipe!r}: it must be {argv[0]!r}, the recipe that the command begins with, whose data "
            "is used; leave --recipe out"
        )
    return checked(typed.config)


def followed(config: Config, argv: Sequence[str]) -> Typed:
    """What one may type of a config whose sizes follow `--size`, and whose ramp follows `--epochs`, where they are
    given. Raises UserError.
    """
    epochs, size = number_of("--epochs", argv), number_of("--size", argv)
    if epochs is not None:
        config = lasting(config, epochs)
    if size is not None:
        config = scaled(config, size)
    return Typed(size=config.data.resolution, config=config)


def number_of(option: str, argv: Sequence[str]) -> int | None:
    """The number that is typed for an option. None where it is not given, or mistyped, which tyro tells."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument(option, dest="number", default="")
    try:
        return int(parser.parse_known_args(argv)[0].number)
    except (ArgumentError, ValueError):
        return None


def command_line_or_exit(prog: str) -> Config:
    """Read this process's command line. A mistake in it ends the process with a message and exit code 78."""
    try:
        config = command_line(prog, sys.argv[1:])
        if not os.environ.get(RunEnv.variable("data")):
            default_data(config.recipe)
        return config
    except UserError as error:
        tell(f"error: {error}", sys.stderr)
        sys.exit(Exit.USER)


if __name__ == "__main__":  # the supervisor runs this first: it checks the command line and prints what it needs
    forgive_output()
    given = command_line_or_exit("python -m trainer.train")
    told = {name: getattr(given, name) for name in ("recipe", "global_batch_size", "device_batch_size", "device")}
    print(json.dumps(told | {"cuda_graphs": given.cuda_graphs, "sync_norm": given.model.sync_norm}))
