"""The command line of a recipe: `<recipe> [--option value …]` becomes a config, or a message with exit code 78.

No torch here, so that `--help` and a mistyped option answer at once.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Sequence

from trainer.contract import Exit, UserError
from trainer.recipes.config import Config
from trainer.recipes.named import RECIPES


def command_line(prog: str, argv: Sequence[str]) -> Config:
    """`<recipe> [--option value …]` as a config. `--help` prints and exits 0; usage errors raise UserError."""
    import tyro  # half of this module's import time, and only a command line needs it

    if argv and not argv[0].startswith("-") and argv[0] not in RECIPES:
        raise UserError(f"recipe {argv[0]!r} is unknown: choose one of {', '.join(RECIPES)} (RECIPE=digits)")
    choices = {name: (inspect.cleandoc(recipe.__doc__ or ""), recipe()) for name, recipe in RECIPES.items()}
    try:
        config = tyro.extras.overridable_config_cli(choices, prog=prog, args=list(argv))
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(f"these options are not understood: see `{' '.join([prog, *argv[:1]])} --help`") from stop
    return config.validate()


def command_line_or_exit(prog: str) -> Config:
    """The process's own command line; a mistake in it ends the process with a message and exit code 78."""
    try:
        return command_line(prog, sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(Exit.USER)


if __name__ == "__main__":  # checks a command line and names its recipe: the supervisor asks before it starts anything
    checked = command_line_or_exit("python -m trainer.train")
    print(json.dumps({name: getattr(checked, name) for name in ("recipe", "global_batch_size", "device_batch_size")}))
