"""The options of a recipe among ARGS=, as the trainer reads them, and what is wrong with them.

The trainer writes down which options there are (`work.trainer_facts`). What is wrong is found here, before a
machine costs money.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from trainer.contract import UserError


def given_options(arguments: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The words behind each option, without its dashes. The last one counts, as for the trainer.

    `_` in a name counts as `-`. A word before the first option is an option of its own, "".
    """
    found: dict[str, list[str]] = {}
    name = ""
    for word in arguments:
        if word.startswith("--"):
            name, equals, value = word.removeprefix("--").partition("=")
            name = name.replace("_", "-")
            found.pop(name, None)  # the last one also stands last
            found[name] = [value] if equals else []
        else:
            found.setdefault(name, []).append(word)
    return {name: tuple(values) for name, values in found.items()}


def value_of(option: str, arguments: Sequence[str]) -> str:
    """The value of `--option value` or `--option=value`; "" without one."""
    return " ".join(given_options(arguments).get(option, ()))


def number_given(option: str, arguments: Sequence[str]) -> float:
    """The number in `--epochs 4`. Returns 0 if there is none, and the recipe's own number counts."""
    try:
        return float(value_of(option, arguments) or 0)
    except ValueError:
        return 0.0


def is_on(option: str, arguments: Sequence[str], default: bool) -> bool:
    """Whether `--option` or `--no-option` is given, the later one; else the recipe's own. Of a group: `--data.no-…`."""
    group, dot, last = option.rpartition(".")
    names = (option, f"{group}{dot}no-{last}")
    given = [name for name in given_options(arguments) if name in names]
    return given[-1] == option if given else default


def check_options(recipe: str, arguments: Sequence[str], options: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises UserError for an option that the recipe does not have, and for a value of the wrong kind.

    `options` has the kind of each option's value: float, int, bool, str, choice (of `choices`), numbers.
    """
    for name, values in given_options(arguments).items():
        if not name:
            raise UserError(
                f"ARGS= begins with {values[0]!r}, which is no option: options begin with --, as --epochs 4"
            )
        plain = re.sub(r"(^|\.)no-([^.]*)$", r"\1\2", name)
        option = options.get(f"--{name}")
        if option is None and options.get(f"--{plain}", {}).get("kind") == "bool":
            option = options[f"--{plain}"]
        if option is None:
            near = get_close_matches(f"--{name}", options, 1)
            did = f": did you mean {near[0]}? " if near else ": "
            raise UserError(
                f"recipe {recipe!r} has no option --{name}{did}`make recipes RECIPE={recipe} ARGS=--help` lists them"
            )
        if wrong := _wrong(option, values):
            raise UserError(f"--{name} {' '.join(values)}".rstrip() + f": {wrong}")


def _wrong(option: Mapping[str, Any], values: Sequence[str]) -> str:
    """What is wrong with the words behind an option, and what to give. "" if nothing is."""
    kind = option["kind"]
    if kind == "bool":
        return "it is a switch and takes no value: leave the value out" if values else ""
    if kind != "numbers" and len(values) != 1:
        return f"it takes one value, not {len(values)}" + ("" if values else ": give one behind it")
    if kind == "choice" and values[0] not in option["choices"]:
        return f"use one of {', '.join(map(repr, option['choices']))}"
    if kind == "int" and not re.fullmatch(r"[+-]?\d+", values[0]):
        return "use a whole number"
    if kind in ("float", "numbers") and not (values and all(map(_is_number, values))):
        return "use a number" if kind == "float" else "use numbers with spaces between them"
    return ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
