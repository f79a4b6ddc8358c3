"""The options of a command. Each is declared once, as a flag and a variable of `make`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any


class CommandLine(argparse.ArgumentParser):
    """A parser that takes an option from its flag. Without the flag, it takes the variable of `make`."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.variables: dict[str, argparse.Action] = {}

    def option(self, name: str, help: str, variable: str = "", **keywords: Any) -> None:
        """Declare an option. `on-demand-after` is the flag `--on-demand-after` and the variable `ON_DEMAND_AFTER=`."""
        variable = variable or name.upper().replace("-", "_")
        self.variables[variable] = self.add_argument(f"--{name}", help=f"{help} (make: {variable}=)", **keywords)

    def json_option(self) -> None:
        """Declare `--json` and JSON=1. `make cost` needs JSON=1, since its ARGS= holds options of the recipe."""
        self.option("json", "print one JSON document, for programs", action="store_true")

    def read(self, environ: Mapping[str, str]) -> None:
        """Take the variables as defaults, so that a flag overrides them. An empty variable counts as not given."""
        for variable, action in self.variables.items():
            if value := environ.get(variable, ""):
                is_switch = action.nargs == 0
                action.default = action.const if is_switch else value  # argparse converts it like a word of the line
