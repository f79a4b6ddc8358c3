"""The clock of a run: what each optimizer step is, computed from its number alone. Nothing here has to be restored."""

from __future__ import annotations

import math
from dataclasses import dataclass

from trainer.contract import UserError
from trainer.recipes.config import Config, OptimConfig


def one_cycle_lr(step: int, total_steps: int, optim: OptimConfig) -> float:
    """Learning rate of a step, 0 ≤ step < total_steps: equal to torch's OneCycleLR (two phases).

    Rises from peak_lr / div to peak_lr in pct_start of the steps, then falls to peak_lr / div / final_div
    (Smith and Topin, arXiv:1708.07120).
    """
    first, last = optim.peak_lr / optim.div, optim.peak_lr / optim.div / optim.final_div
    top = optim.pct_start * total_steps - 1
    end = total_steps - 1
    if step <= top or end == top:
        return anneal(first, optim.peak_lr, step / top if top else 1.0, optim.anneal)
    return anneal(optim.peak_lr, last, (step - top) / (end - top), optim.anneal)


def anneal(start: float, end: float, share: float, shape: str) -> float:
    if shape == "linear":
        return start + (end - start) * share
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The clock of a run: how many steps there are, and what is due at each."""

    steps_per_epoch: int
    total_steps: int
    val_every_epochs: int

    @classmethod
    def of(cls, config: Config, images: int) -> Plan:
        per_epoch = images // config.global_batch_size  # the rest of an epoch, less than a step, is left out
        if not per_epoch:
            raise UserError(
                f"--global-batch-size {config.global_batch_size} is more than the {images} training images: "
                "an epoch has no step; choose a smaller one"
            )
        return cls(
            steps_per_epoch=per_epoch,
            total_steps=per_epoch * config.epochs,
            val_every_epochs=config.val_every_epochs,
        )

    def epoch(self, step: int) -> float:
        return step / self.steps_per_epoch

    def validation_is_due(self, step: int) -> bool:
        return step == self.total_steps or (step > 0 and step % (self.steps_per_epoch * self.val_every_epochs) == 0)
