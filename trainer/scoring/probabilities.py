"""From pixels to log-probabilities, with the preprocessing of a card. It opens no data, so its imports are few."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from trainer.data.augment.batch import to_input
from trainer.learning.evaluation import autocast, forward_dtype
from trainer.model_card import ModelCard
from trainer.recipes.config import Config


def config_for(card: ModelCard, base: Config) -> Config:
    """The base with the preprocessing of a card."""
    data = replace(
        base.data, mean=card.mean, std=card.std, val_resize=card.val_resize, val_crop=card.val_crop
    )  # fmt: skip
    return replace(base, data=data)


def log_probabilities(model: nn.Module, images: Tensor, flip: bool, config: Config, device: torch.device) -> Tensor:
    """(N, classes) float32 of (N, H, W, 3) uint8, which are mirrored if `flip`."""
    flips = torch.full((len(images),), flip, device=device)
    shown = to_input(images, flips, config.data, dtype=forward_dtype(config))
    with autocast(config, device):
        logits: Tensor = model(shown)
    return logits.float().log_softmax(dim=1)
