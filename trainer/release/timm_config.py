"""The `config.json` by which timm finds network, head and preprocessing of the weights beside it. No I/O here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from trainer.export.twins import TIMM_NAMES
from trainer.imagenet import class_names
from trainer.model_card import ModelCard


def timm_config(card: ModelCard, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What `timm.create_model("local-dir:FOLDER")` reads, as JSON. The network must be one of TIMM_NAMES."""
    matrices = [name.removesuffix(".weight") for name, tensor in tensors.items() if tensor.ndim > 1]
    first, head = matrices[0], matrices[-1]
    classes, features = tensors[f"{head}.weight"].shape[:2]
    config: dict[str, Any] = {
        "architecture": TIMM_NAMES[card.network], "num_classes": classes, "num_features": features,
    }  # fmt: skip
    if card.classes:
        config["label_names"] = list(card.classes)
        described = dict(zip(card.classes, class_names(card.classes), strict=True))
        if any(name != text for name, text in described.items()):
            config["label_descriptions"] = described
    config["pretrained_cfg"] = {
        "custom_load": False, "input_size": [3, card.val_crop, card.val_crop], "fixed_input_size": False,
        "interpolation": card.resize_mode, "crop_pct": crop_share(card.val_resize, card.val_crop),
        "crop_mode": "center", "mean": list(card.mean), "std": list(card.std), "num_classes": classes,
        "pool_size": None, "first_conv": first, "classifier": head,
    }  # fmt: skip
    return config


def crop_share(resize: int, crop: int) -> float:
    """timm's `crop_pct`: it resizes the short side to floor(crop / crop_pct), which must be `resize` to the pixel."""
    share = crop / resize
    while math.floor(crop / share) < resize:  # 9 / (9 / 14) is a hair below 14
        share = math.nextafter(share, 0)
    return share
