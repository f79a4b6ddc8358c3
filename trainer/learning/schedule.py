"""The clock of a run: what each optimizer step is, computed from its number alone. Nothing here has to be restored."""

from __future__ import annotations

import math
from dataclasses import dataclass

from trainer.contract import UserError
from trainer.recipes.config import Config, OptimConfig


@dataclass(frozen=True)
class Settings:
    """What one step trains with."""

    epoch: float  # passes over the training images before this step
    lr: float
    resolution: int  # pixels of a side of a training image


@dataclass(frozen=True, kw_only=True)
class Clock:
    """The steps of a run. A step's number, from 0, says everything about it."""

    config: Config
    steps_per_epoch: int

    @classmethod
    def of(cls, config: Config, images: int) -> Clock:
        """`images` training images; the last images of an epoch that do not fill a step are left out.

        Raises UserError where an epoch has no step at all.
        """
        if not (steps_per_epoch := images // config.global_batch_size):
            raise UserError(
                f"--global-batch-size {config.global_batch_size} is more than the {images} training images: "
                "an epoch has no step; choose a smaller one"
            )
        return cls(config=config, steps_per_epoch=steps_per_epoch)

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.config.epochs

    def at(self, step: int) -> Settings:
        """The settings of a step, 0 ≤ step < total_steps. Nothing else computes a learning rate or a resolution."""
        return Settings(
            epoch=step / self.steps_per_epoch,
            lr=one_cycle_lr(step, self.total_steps, self.config.optim),
            resolution=self.resolution(step),
        )

    def resolution(self, step: int) -> int:
        """Pixels of a side: the same in a whole epoch."""
        return self.config.resolution_at(step // self.steps_per_epoch)

    def resolution_changes(self, step: int) -> bool:
        """Whether step number `step` has another resolution than the one before it."""
        return 0 < step < self.total_steps and self.resolution(step) != self.resolution(step - 1)

    def validation_is_due(self, step: int) -> bool:
        """After so many steps: every `val_every_epochs` epochs, and at the end."""
        every = self.steps_per_epoch * self.config.val_every_epochs
        return step == self.total_steps or (step > 0 and step % every == 0)


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
    """Between `start` and `end`, share 0 to 1 of the way, along a cosine or a line."""
    if shape == "linear":
        return start + (end - start) * share
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))
