"""What a rule of a config's value is, and how its message names an option to type."""

from __future__ import annotations

Rule = tuple[str, object, bool, str]  # an option, its value, whether its rule holds, and the rule


def how_to_type(option: str, value: str) -> str:
    """`--model.init torchvision`, or `--model.no-zero-init` where the value is off."""
    if value != "off":
        return f"{option} {value}"
    group, dot, name = option.removeprefix("--").rpartition(".")
    return f"--{group}{dot}no-{name}"
