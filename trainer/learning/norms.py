"""The BatchNorm statistics of averaged weights, anew from training images: those of the weights before fit no mean.

An average that moves at every step averages the statistics, too. The mean over the last epochs has too few of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import nn

from trainer.data.augment.batch import to_input
from trainer.data.reading.loader import Batch
from trainer.data.reading.order import MIX, generator
from trainer.learning.evaluation import autocast, forward_dtype
from trainer.learning.forward import inputs_of
from trainer.learning.world import World, all_sum
from trainer.recipes.config import Config

IMAGES = 8192  # or an epoch, if that is less: 1,000 to 10,000 are enough (Wu and Johnson, arXiv:2105.07576)
AnyNorm = nn.modules.batchnorm._BatchNorm


@torch.no_grad()
def renew_norms(
    model: nn.Module, batches: Iterable[Batch], config: Config, world: World, step: int, alive: Callable[[int], None]
) -> int:
    """The mean of each layer's statistics over the batches, augmented and mixed as in training at number `step`.

    Nothing is dropped out. Frozen layers keep what they have. `alive(images)` is called after every batch.
    No collectives here: one process may be interrupted on its own. `share_norms` comes next, and takes what this
    returns, the number of batches.
    """
    taken, mine = 0, config.micro_batches_of(world.rank, world.size)
    model.eval()
    norms = [norm for norm in norms_of(model) if norm.train().training]  # one that is frozen does not listen
    for norm in norms:  # kernels that compute a + (b - a) * 1 would keep a rounding of what was there
        norm.get_buffer("running_mean").zero_()
        norm.get_buffer("running_var").fill_(1)
    momenta = [norm.momentum for norm in norms]
    try:
        for batch in batches if norms else ():
            later_step, place = divmod(taken, len(mine))
            number, taken = later_step * config.micro_batches + mine[place], taken + 1
            for norm in norms:
                norm.momentum = 1 / taken  # so that the running mean is the mean
            draw = partial(generator, MIX, config.seed, 1 + number, step)
            images = inputs_of(batch, config, draw).images
            if images.dtype == torch.uint8:
                images = to_input(images, batch.flips, config.data, dtype=forward_dtype(config))
            with autocast(config, world.device):
                model(images)
            alive(len(images))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.train()
    return taken


def norms_of(model: nn.Module) -> list[AnyNorm]:
    """The layers that have statistics."""
    return [module for module in model.modules() if isinstance(module, AnyNorm) and module.running_mean is not None]


@torch.no_grad()
def share_norms(model: nn.Module, world: World, taken: int) -> None:
    """The mean of all processes' statistics, on each of them. That of this process is one over `taken` batches.

    Frozen layers keep what they have.
    """
    if world.size == 1:
        return
    norms = [norm for norm in norms_of(model) if norm.training]
    statistics = [norm.get_buffer(name) for norm in norms for name in ("running_mean", "running_var")]
    if statistics:
        count = statistics[0].new_full((1,), taken)
        sums, counts = all_sum(torch.cat([*(one * taken for one in statistics), count]), world).tensor_split([-1])
        torch._foreach_copy_(statistics, list((sums / counts).split_with_sizes([one.numel() for one in statistics])))
