"""The clock of a run: what each optimizer step is, computed from its number alone. Nothing here has to be restored."""

from __future__ import annotations

import math
from dataclasses import dataclass

from trainer.contract import UserError
from trainer.recipes.config import Config, OptimConfig, ScheduleConfig


@dataclass(frozen=True)
class Settings:
    """What one step trains with."""

    epoch: float  # passes over the training images before this step
    lr: float
    resolution: int  # pixels of a side of a training image
    ema_decay: float = 1.0  # of the EMA after this step: 0 makes it a copy of the weights, 1 leaves it as it is
    swa_number: int = 0  # of the weights after this step in the mean of the last epochs, from 1; 0: they are not in it
    epoch_before: int = 0  # the step that ended the epoch before


@dataclass(frozen=True, kw_only=True)
class Clock:
    """The steps of a run. A step's number, from 0, says everything about it."""

    config: Config
    steps_per_epoch: int

    @classmethod
    def of(cls, config: Config, images: int) -> Clock:
        """`images` training images; the last images of an epoch that do not fill a step are left out.

        Raises UserError where an epoch has no step, where a warm-up leaves none, and where an EMA would not move.
        """
        if not (steps_per_epoch := images // config.global_batch_size):
            batch, rate = 1 << max(images, 1).bit_length() - 1, config.optim.peak_lr
            raise UserError(
                f"--global-batch-size {config.global_batch_size} is more than the {images} training images: "
                f"an epoch has no step; pass --global-batch-size {batch} --device-batch-size "
                f"{min(batch, config.device_batch_size)} --optim.peak-lr {rate * batch / config.global_batch_size:g}"
            )
        clock = cls(config=config, steps_per_epoch=steps_per_epoch)
        warmup, unit = config.schedule.warmup_epochs, steps_per_epoch if config.schedule.by_epoch else 1
        if math.ceil(warmup * steps_per_epoch / unit) * unit >= clock.total_steps:
            raise UserError(
                f"--schedule.warmup-epochs {warmup:g} takes {warmup * steps_per_epoch:g} of {clock.total_steps} steps: "
                "no step would have the highest learning rate; choose a shorter warm-up, or more --epochs"
            )
        every, begin = config.average.every_steps, math.ceil(config.average.start_epoch * steps_per_epoch)
        if config.keeps_ema and every > 1 and every >= clock.total_steps - begin:
            raise UserError(
                f"--average.every-steps {every} is no less than the {clock.total_steps - begin} steps of the EMA, of "
                f"{clock.total_steps} in all: it would stay as it begins; choose fewer steps, or more --epochs"
            )
        return clock

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.config.epochs

    def at(self, step: int) -> Settings:
        """The settings of a step, 0 ≤ step < total_steps. Nothing else computes a learning rate or a resolution."""
        return Settings(
            epoch=step / self.steps_per_epoch,
            lr=learning_rate(step, self.steps_per_epoch, self.config),
            resolution=self.resolution(step),
            ema_decay=ema_decay(step + 1, self.steps_per_epoch, self.config),
            swa_number=swa_number(step + 1, self.steps_per_epoch, self.config),
            epoch_before=step + 1 - self.steps_per_epoch,
        )

    def resolution(self, step: int) -> int:
        """Pixels of a side: the same in a whole epoch; after the last step those of the last epoch."""
        return self.config.resolution_at(min(step // self.steps_per_epoch, self.config.epochs - 1))

    def resolution_changes(self, step: int) -> bool:
        """Whether step number `step` has another resolution than the one before it."""
        return 0 < step < self.total_steps and self.resolution(step) != self.resolution(step - 1)

    def validation_is_due(self, step: int) -> bool:
        """After so many steps: every `val_every_epochs` epochs, at the end, and where the mean of weights moves."""
        every = self.steps_per_epoch * self.config.val_every_epochs
        moves = swa_number(step, self.steps_per_epoch, self.config) > 0
        return step == self.total_steps or (step > 0 and step % every == 0) or moves

    def is_out_of_patience(self, step: int, best_step: int) -> bool:
        """Whether, after the validation of `step`, too many have come since the best one, of `best_step`."""
        every, patience = self.steps_per_epoch * self.config.val_every_epochs, self.config.patience
        return patience > 0 and step // every - best_step // every >= patience


def learning_rate(step: int, steps_per_epoch: int, config: Config) -> float:
    """Of a step, 0 ≤ step < all steps."""
    if config.schedule.by_epoch:
        step -= step % steps_per_epoch
    if config.schedule.kind == "one_cycle":
        return one_cycle_lr(step, steps_per_epoch * config.epochs, config.optim)
    return config.optim.peak_lr * share_of_peak(step / steps_per_epoch, config.epochs, config.schedule)


def share_of_peak(epoch: float, epochs: int, schedule: ScheduleConfig) -> float:
    """Of the highest learning rate, at `epoch` of `epochs`, in every kind of schedule but OneCycle.

    A line up in the warm-up. Then a cosine or a line down to the end, steps down, or nothing but a line at the end.
    """
    warmup, start, end = schedule.warmup_epochs, schedule.warmup_start, schedule.final_share
    if epoch < warmup:
        return start + (1 - start) * epoch / warmup
    if schedule.kind == "step":
        return schedule.decay_factor ** sum(epoch >= drop for drop in schedule.decay_epochs)
    if schedule.kind == "constant":
        falling = epoch - (epochs - schedule.cooldown_epochs)
        return anneal(1.0, end, falling / schedule.cooldown_epochs, "linear") if falling > 0 else 1.0
    before = 0.0 if schedule.warmup_overlaps else warmup
    return anneal(1.0, end, (epoch - before) / (epochs - before), "cos" if schedule.kind == "cosine" else "linear")


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


def ema_decay(step: int, steps_per_epoch: int, config: Config) -> float:
    """Of the EMA after step number `step`, from 1: 0 makes it a copy of the weights, 1 leaves it as it is.

    A decay that warms up is (1 + n) / (10 + n) in the n-th update, so that a young average is not the random start
    (TensorFlow's ExponentialMovingAverage, `num_updates`). One that does not begins as a copy of the first weights.
    """
    average = config.average
    every = average.every_steps
    begin = math.ceil(average.start_epoch * steps_per_epoch)
    if not average.warms_up:
        begin = max(1, begin)
    if step <= begin:
        return 0.0 if step == begin or step % every == 0 else 1.0
    if step % every:
        return 1.0
    decay = 2 ** (-every / average.half_life_steps) if average.half_life_steps else config.regularize.ema_decay
    updates = step // every - begin // every
    return min(decay, (1 + updates) / (10 + updates)) if average.warms_up else decay


def swa_number(step: int, steps_per_epoch: int, config: Config) -> int:
    """Of the weights after step number `step`, from 1, in the mean of the last epochs; 0: they are not in it."""
    epochs, rest = divmod(step, steps_per_epoch)
    return 0 if rest else max(0, epochs - (config.epochs - config.average.late_epochs))
