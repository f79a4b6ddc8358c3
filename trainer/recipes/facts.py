"""Writes recipes.json: what the AWS app knows of recipes and options without this code. A test keeps it in step.

python -m trainer.recipes.facts
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from trainer.recipes.command_line import Typed
from trainer.recipes.config import Config
from trainer.recipes.named import DEFAULT_DATA, PROMISES, RECIPES, USUAL_DATA
from trainer.recipes.networks import NETWORKS
from trainer.recipes.sides import wanted_spans

FILE = Path(__file__).with_name("recipes.json")
# Time of a step with BlurPool over that of a plain network. This project has not measured it on a GPU, so this is a
# bound. timm's resnetblur50 trains at 912 images/s on an RTX 3090, its resnet50 at 1,218 (its results csv); that one
# blurs behind convolutions of stride 1, with a quarter more multiplications. FFCV's whole runs with a blur take 1.34
# times what a plain network needs on the same A100s, validation included. The bytes of ours alone say 1.07.
BLUR_COST = 1.33
VALUE_KINDS = {bool: "bool", int: "int", float: "float", str: "str"}


def all_facts() -> dict[str, Any]:
    """What recipes.json says: every recipe and network by name, every option with its kind of value."""
    return {
        "recipes": {name: recipe_facts(name, recipe()) for name, recipe in RECIPES.items()},
        "options": options(Typed),
        "networks": {
            name: dataclasses.asdict(traits) | {"weights": list(traits.weights)} for name, traits in NETWORKS.items()
        },
    }


def recipe_facts(name: str, config: Config) -> dict[str, Any]:
    """What time and dollars of a recipe depend on, and what it promises."""
    promise = PROMISES.get(name)
    return {
        "data": DEFAULT_DATA.get(name, USUAL_DATA),
        "network": config.model.name,
        "weights": config.model.weights,
        "precision": config.precision,
        "compile": config.compile,
        "batch": config.global_batch_size,
        "device_batch": config.device_batch_size,
        "epochs": config.epochs,
        "stages": stages(config),
        "val_crop": config.data.val_crop,
        "val_every_epochs": config.val_every_epochs,
        "val_passes": 1 + config.keeps_ema,
        "train_sides": list(config.data.train_sides),
        "copy_per_crop": config.data.copy_per_crop,
        "crop_scale": list(config.data.crop_scale),
        "val_side": config.data.val_side,
        "wanted": {"one_copy": spans(config, per_crop=False), "per_crop": spans(config, per_crop=True)},
        "step_cost": BLUR_COST if config.model.blur_pool != "none" else 1.0,
        "promise": dataclasses.asdict(promise) if promise else None,
    }


def stages(config: Config) -> list[list[int]]:
    """The sizes of training images in their order: [pixels, epochs] each."""
    sizes = map(config.resolution_at, range(config.epochs))
    return [[pixels, len(list(group))] for pixels, group in groupby(sizes)]


def spans(config: Config, *, per_crop: bool) -> dict[str, list[list[int]]]:
    """The least and the most short side that the run wants of each split, with and without a copy for each crop."""
    wanted = wanted_spans(replace(config, data=replace(config.data, copy_per_crop=per_crop)))
    return {split: sorted(map(list, found)) for split, found in wanted.items()}


def options(kind: type, prefix: str = "--") -> dict[str, dict[str, Any]]:
    """The options of what one types, each with the kind of its value."""
    found: dict[str, dict[str, Any]] = {}
    for name, hint in get_type_hints(kind).items():
        option = prefix + name.replace("_", "-")
        if hint is Config:
            found |= options(hint, prefix)
        elif dataclasses.is_dataclass(hint):
            found |= options(hint, f"{option}.")  # type: ignore[arg-type]
        elif get_origin(hint) is Literal:
            found[option] = {"kind": "choice", "choices": list(get_args(hint))}
        else:
            found[option] = {"kind": "numbers" if get_origin(hint) is tuple else VALUE_KINDS[hint]}
    return found


def to_text() -> str:
    """The text of recipes.json, with one recipe or option a line."""
    parts = []
    for name, rows in all_facts().items():
        lines = ",\n".join(f"    {json.dumps(key)}: {json.dumps(row)}" for key, row in rows.items())
        parts.append(f"  {json.dumps(name)}: {{\n{lines}\n  }}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    FILE.write_text(to_text())
