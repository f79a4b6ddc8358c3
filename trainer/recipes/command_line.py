"""The command line of a recipe: `<recipe> [--option value …]` becomes a config, or a message with exit code 78.

torch is not imported here, so that `--help` and a mistyped option answer at once.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Sequence

from trainer.contract import Exit, RunEnv, UserError
from trainer.recipes.config import Config
from trainer.recipes.named import RECIPES, default_data
from trainer.recipes.rules import checked
from trainer.text import forgive_output, tell


def command_line(prog: str, argv: Sequence[str]) -> Config:
    """`<recipe> [--option value …]` as a config. `--help` prints and exits 0; usage errors raise UserError."""
    import tyro  # it takes half of the import time, and only this function needs it

    if argv and not argv[0].startswith("-") and argv[0] not in RECIPES:
        raise UserError(f"recipe {argv[0]!r} is unknown: choose one of {', '.join(RECIPES)} (RECIPE=digits)")
    choices = {name: (inspect.cleandoc(recipe.__doc__ or ""), recipe()) for name, recipe in RECIPES.items()}
    try:
        config = tyro.extras.overridable_config_cli(choices, prog=prog, args=list(argv))
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(f"these options are not understood: see `{' '.join([prog, *argv[:1]])} --help`") from stop
    return checked(config)


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
    print(
        json.dumps(
            {name: getattr(given, name) for name in ("recipe", "global_batch_size", "device_batch_size", "device")}
        )
    )
