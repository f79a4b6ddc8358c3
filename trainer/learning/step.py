"""One optimizer step: forward and backward of its micro-batches, the update, the average."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from trainer.data.reading.loader import Batch
from trainer.data.reading.order import MIX, generator
from trainer.learning.batch_counts import raise_counts
from trainer.learning.execution import Execution
from trainer.learning.forward import inputs_of
from trainer.learning.schedule import Settings
from trainer.learning.state import State
from trainer.learning.world import World
from trainer.recipes.config import Config


def train_step(
    state: State,
    execution: Execution,
    batches: Iterator[Batch],
    config: Config,
    settings: Settings,
    world: World,
) -> Tensor:
    """Step number `state.step`. Returns this process's sums of loss, top-1 and top-5 hits, images: (4,) float32.

    What a micro-batch draws depends on the step and its number in the step, never on the process that computes it.
    """
    mine, sums = config.micro_batches_of(world.rank, world.size), torch.zeros(4, device=world.device)
    for number in mine:
        if state.draws:
            torch.manual_seed(seed_of(config, state.step, number))
        inputs = inputs_of(next(batches), config, draws_of(config, state.step, number))
        sums += execution.forward_backward(inputs, is_last=number == mine[-1])
    execution.update(settings.lr)
    raise_counts(state.batch_counts, len(mine))
    state.step += 1
    if state.average is not None and settings.ema_decay < 1:
        state.average.update(settings.ema_decay)
    if state.swa is not None and settings.swa_number:
        state.move_mean(settings)
    return sums


def seed_of(config: Config, step: int, number: int) -> int:
    """What the network's own random numbers begin with, as those of dropout, for the micro-batch of this number."""
    return int(generator(MIX, config.seed, 0, step).integers(2**63, size=1 + number)[number])


def draws_of(config: Config, step: int, number: int) -> Callable[[], np.random.Generator]:
    """Gives the random numbers by which the micro-batch of this number is mixed, whichever process computes it."""
    return partial(generator, MIX, config.seed, 1 + number, step)
