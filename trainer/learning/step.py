"""One optimizer step: forward and backward of its micro-batches, the update, the average."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.data.augment.batch import mix, one_hot, to_augmented_input
from trainer.data.reading.loader import Batch
from trainer.data.reading.order import MIX, generator
from trainer.learning.average import update_ema
from trainer.learning.evaluation import autocast, hits
from trainer.learning.optimizer import set_lr
from trainer.learning.schedule import Settings
from trainer.learning.state import State
from trainer.learning.world import World, without_sync
from trainer.recipes.config import Config


def train_step(
    state: State,
    net: nn.Module,
    batches: Iterator[Batch],
    config: Config,
    settings: Settings,
    world: World,
    before_update: Callable[[], None],
) -> Tensor:
    """Step number `state.step`. Returns this process's sums of loss, top-1 hits, top-5 hits, and images: (4,) float32.

    `before_update` is called before the first parameter changes.
    """
    accum, sums = config.grad_accum_steps(world.size), torch.zeros(4, device=world.device)
    set_lr(state.optimizer, settings.lr)
    torch.manual_seed(int(generator(MIX, config.seed, 0, state.step).integers(2**63)))  # for models with dropout
    for micro in range(accum):
        batch = next(batches)
        rng = generator(MIX, config.seed, 1 + micro * world.size + world.rank, state.step)
        images = to_augmented_input(batch.images, batch.flips, batch.draws, config.data, config.regularize)
        images, targets = mix(images, one_hot(batch.labels, config.model.num_classes), config.regularize, rng)
        with without_sync(net, skip=micro < accum - 1):
            with autocast(config, world.device):
                logits = net(images)
            loss = F.cross_entropy(logits.float(), targets, label_smoothing=config.regularize.label_smoothing)
            state.scaler.scale(loss / accum).backward()  # type: ignore[no-untyped-call]
        count = loss.new_full((), len(images))
        sums += torch.stack([loss.detach() * count, *hits(logits.detach(), batch.labels), count])
    before_update()
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    if state.average is not None:
        update_ema(state.average, state.model, config.regularize.ema_decay, state.step)
    return sums
