"""The pass over a split: each image is decoded once, every member answers, and the answers go to disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from trainer.data.augment.batch import to_input
from trainer.data.reading.loader import Batch, Loader, val_jobs
from trainer.data.reading.split import PreparedSplit
from trainer.learning.evaluation import autocast, forward_dtype
from trainer.learning.world import World
from trainer.model_card import ModelCard
from trainer.recipes.config import Config
from trainer.scoring.members import Member
from trainer.scoring.predictions import Predictions


def config_for(card: ModelCard, base: Config) -> Config:
    """The base with the preprocessing of a card."""
    data = replace(
        base.data, mean=card.mean, std=card.std, val_resize=card.val_resize, val_crop=card.val_crop
    )  # fmt: skip
    return replace(base, data=data)


@torch.inference_mode()
def predict_split(
    members: Mapping[Member, Predictions],
    split: PreparedSplit,
    base: Config,
    world: World,
    alive: Callable[[int], None],
) -> None:
    """Log-probabilities of this process's images for each member, written to its Predictions.

    All members must have the same geometry; each gets its own normalisation. `base` says precision, device, batch and
    threads. `alive(images)` is called after every batch. No collectives here.
    """
    config = config_for(next(iter(members)).card, base)
    models = {member: member.model.to(world.device) for member in members}
    done = 0
    mine = np.arange(world.rank, len(split), world.size)
    jobs = val_jobs(config, split, rank=world.rank, world=world.size)
    with Loader(
        jobs, max_images=min(config.val_batch_size, len(split)), max_pixels=config.data.val_crop,
        workers=config.data.workers, device=world.device,
    ) as loader:  # fmt: skip
        for batch in loader:
            indices = mine[done : done + len(batch.labels)]
            for member, predictions in members.items():
                rows = log_probabilities(models[member], batch, config_for(member.card, base), world.device)
                predictions.write(indices, rows.cpu().numpy())
            done += len(indices)
            alive(len(indices))


def log_probabilities(model: nn.Module, batch: Batch, config: Config, device: torch.device) -> Tensor:
    """(N, classes) float32."""
    images = to_input(batch.images, batch.flips, config.data, dtype=forward_dtype(config))
    with autocast(config, device):
        logits: Tensor = model(images)
    return logits.float().log_softmax(dim=1)
