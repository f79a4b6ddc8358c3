"""The part of a step that is differentiated: preprocessing, network and loss, as one module.

It is what is compiled, what a CUDA graph captures, and what DistributedDataParallel wraps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from trainer.data.augment.batch import mix, normalisation, one_hot, to_augmented_input, to_input
from trainer.data.reading.loader import Batch
from trainer.learning.evaluation import autocast, forward_dtype, hits
from trainer.learning.loss import mean_loss
from trainer.recipes.config import Config


class Inputs(NamedTuple):
    """What a micro-batch gives to `Forward`."""

    images: Tensor  # (N, H, W, 3) uint8 as decoded; or (N, 3, H, W) float32, augmented and mixed
    flips: Tensor  # (N,) bool: what is still to be flipped, of decoded images
    labels: Tensor  # (N,) int64, for the hits
    targets: Tensor  # (N, classes) float32, for the loss


def inputs_of(batch: Batch, config: Config, draw: Callable[[], np.random.Generator]) -> Inputs:
    """Augment and mix a batch where the config asks for it. Else the images stay bytes: `Forward` normalises them.

    `draw` gives the random numbers of this micro-batch.
    """
    reg, images = config.regularize, batch.images
    targets = one_hot(batch.labels, config.model.num_classes)
    if batch.draws.shape[1] or reg.mixup_alpha or reg.cutmix_alpha:
        images = to_augmented_input(images, batch.flips, batch.draws, config.data, reg)
        images, targets = mix(images, targets, reg, draw())
    return Inputs(images, batch.flips, batch.labels, targets)


class Forward(nn.Module):
    """Loss and sums of a micro-batch."""

    def __init__(self, model: nn.Module, config: Config, device: torch.device, class_weights: Tensor | None = None):
        """`class_weights`, (classes,) float32, are given where the config asks for them, and nowhere else."""
        super().__init__()
        assert (class_weights is None) == (config.regularize.class_weights == "none")
        self.model, self.config = model, config
        self.class_weights = None if class_weights is None else class_weights.to(device)
        normalisation(config.data.mean, config.data.std, device)  # now: neither compiled nor captured code may copy it

    def forward(self, images: Tensor, flips: Tensor, labels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss, () float32; and the sums of loss, top-1 hits, top-5 hits, and images, (4,) float32, detached.

        The arguments are those of `Inputs`.
        """
        if images.dtype == torch.uint8:
            images = to_input(images, flips, self.config.data, dtype=forward_dtype(self.config))
        with autocast(self.config, images.device):
            logits = self.model(images)
        logits = logits.float()
        loss = mean_loss(logits, targets, self.config.regularize, self.class_weights)
        count = loss.new_full((), len(images))
        return loss, torch.stack([loss.detach() * count, *hits(logits.detach(), labels), count])
