"""Exported weights of a small network, to be asked what is on images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from trainer.learning.model import build_model
from trainer.model_card import METADATA_KEY, ModelCard
from trainer.recipes.config import ModelConfig

NETWORK, CLASSES = "shufflenet_v2_x0_5", ("ant", "bee", "cat", "dog")
WNIDS = ("n01440764", "n01443537", "n01484850", "n01491361")
Said = Callable[..., tuple[int, str, str]]  # arguments -> exit code, standard output, standard error


def answers(seed: int) -> dict[str, Tensor]:
    """Random weights whose answers differ between images."""
    torch.manual_seed(seed)
    model = build_model(ModelConfig(name=NETWORK, num_classes=len(CLASSES))).train()
    with torch.no_grad():
        for _ in range(3):  # statistics of noise: else every image gets the same answer
            model(torch.randn(8, 3, 32, 32))
    return model.state_dict()


def put_weights(root: Path) -> None:
    """Files: made, wnids and nameless, whose classes have other names, and damaged ones."""
    weights = answers(0)
    card = ModelCard(
        network=NETWORK, classes=CLASSES, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.2), val_resize=36, val_crop=32
    )
    names = {"made": CLASSES, "damaged": CLASSES, "nameless": (), "wnids": WNIDS}
    for name, classes in names.items():
        huge = {"fc.weight": torch.full_like(weights["fc.weight"], 3e38)} if name == "damaged" else {}
        about = {METADATA_KEY: replace(card, classes=classes).to_text()}
        safetensors.torch.save_file(weights | huge, root / f"{name}.safetensors", metadata=about)
