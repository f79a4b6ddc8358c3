"""Works of recipes that tests make up, so that no change of a recipe changes what they compute."""

from __future__ import annotations

from typing import Any

from infra.operate.planning import catalog
from infra.operate.planning.work import Stage, Work

PRICES = {type.name: type.usd_per_hour for type in catalog.TYPES.values()}


def work(*stages: tuple[int, float], **fields: Any) -> Work:
    """16 epochs at 224 px, unless told."""
    stages = stages or ((224, 16),)
    made: dict[str, Any] = {
        "recipe": "made", "data": "ILSVRC/imagenet-1k", "precision": "bf16", "compile": False,
        "epochs": round(sum(epochs for _, epochs in stages)), "stages": tuple(Stage(*one) for one in stages),
        "val_crop": 224, "val_every_epochs": 1, "train_sides": (256, 128),
    }  # fmt: skip
    return Work(**made | fields)
