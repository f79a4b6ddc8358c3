"""A config as strict JSON, as flat fields by dotted name, and what differs between two.

torch is not imported here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any, Literal, get_args, get_origin, get_type_hints

from trainer.contract import UserError
from trainer.recipes.config import Config


def to_json(config: Any) -> dict[str, Any]:
    """The tree as plain JSON values."""
    return dataclasses.asdict(config)


def from_json(kind: Any, value: Any, path: str = "") -> Any:
    """Build `kind` from JSON values. An unknown, missing or mistyped field raises UserError with its path."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints, known = get_type_hints(kind), {f.name for f in dataclasses.fields(kind)}
        needed = {f.name for f in dataclasses.fields(kind) if not f.metadata.get("added")}
        if not isinstance(value, dict) or not needed <= set(value) <= known:
            odd = sorted(set(value) - known | needed - set(value)) if isinstance(value, dict) else value
            raise UserError(
                f"config {path or 'root'}: fields {odd} are unknown or missing: it was written by another version "
                "of resnet-spot; use that version, or start a new run (RUN=another-name)"
            )
        return kind(**{name: from_json(hints[name], value[name], f"{path}.{name}".lstrip(".")) for name in value})
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        kinds = get_args(kind)
        kinds = kinds[:1] * len(value) if kinds[1:] == (...,) else kinds
        if len(kinds) == len(value):
            return tuple(from_json(k, v, f"{path}[]") for k, v in zip(kinds, value, strict=True))
    if get_origin(kind) is Literal and value in get_args(kind):
        return value
    if kind is float and (isinstance(value, float) or (type(value) is int and abs(value) < 1 << 63)):
        return float(value)
    if isinstance(kind, type) and type(value) is kind:
        return value
    raise UserError(f"config {path}={value!r} is not a {kind}: fix the file or start a new run (RUN=another-name)")


def flatten(config: Any, *, operational: bool = True, prefix: str = "") -> dict[str, Any]:
    """The values by dotted name, with or without the operational fields."""
    flat: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value, name = getattr(config, f.name), prefix + f.name
        if dataclasses.is_dataclass(value):
            flat |= flatten(value, operational=operational, prefix=f"{name}.")
        elif operational or not f.metadata.get("operational"):
            flat[name] = value
    return flat


def config_hash(config: Config) -> str:
    """A hash of what is computed: operational fields do not count."""
    return hashlib.sha256(json.dumps(flatten(config, operational=False), sort_keys=True).encode()).hexdigest()[:16]


def differences(old: Config, new: Config) -> list[str]:
    """`optim.peak_lr: 0.1 -> 0.2` for every field that changes what is computed."""
    before, after = flatten(old, operational=False), flatten(new, operational=False)
    return [f"{name}: {before[name]!r} -> {after[name]!r}" for name in before if before[name] != after[name]]
