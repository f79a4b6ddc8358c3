"""Everything that training changes, as one value: what a step works on, and what a checkpoint holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from trainer.contract import UserError
from trainer.learning.average import Average
from trainer.learning.batch_counts import take_over_counts
from trainer.learning.fused_norm import fuse_norms
from trainer.learning.groups import freeze
from trainer.learning.model import build_model, draws_numbers
from trainer.learning.optimizer import make_optimizer, optimizer_tensors
from trainer.learning.schedule import Settings
from trainer.learning.sync_norm import sync_norms
from trainer.recipes.config import Config

COUNTERS = ("step", "validated", "scores", "best", "seconds")


@dataclass(kw_only=True)
class State:
    """Everything that training changes."""

    model: nn.Module  # the raw module: state, average, validation
    average: Average | None  # EMA of weights and BatchNorm buffers
    swa: Average | None  # the mean of the last epochs' weights; before them, of no meaning
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    batch_counts: list[Tensor]  # BatchNorm's, which each step raises; not those that are frozen
    draws: bool  # whether the model draws random numbers, as dropout does
    step: int = 0  # optimizer steps done
    swa_step: int = 0  # the last one after which `swa` moved
    swa_count: int = 0  # how many weights are in `swa`; -1: an older version has not counted them
    validated: int = 0  # the step of the last validation
    scores: dict[str, float] = field(default_factory=dict)  # of the last validation
    best: dict[str, Any] = field(default_factory=lambda: {"top1": -1.0, "step": 0, "weights": "model"})
    seconds: float = 0.0  # spent in training steps, over all attempts

    def models(self) -> dict[str, nn.Module]:
        """What a validation scores, by the prefix of the scores' names."""
        models = {"val": self.model} | ({"val_ema": self.average.model} if self.average is not None else {})
        return models | ({"val_swa": self.swa.model} if self.swa is not None and self.swa_step == self.step else {})

    def move_mean(self, settings: Settings) -> None:
        """Take the weights after the step with these settings into the mean of the last epochs, all with equal shares.

        A mean begins anew, as a copy, where what is in it is not of the epochs right before, all of them late ones: the
        number of epochs was changed meanwhile.
        """
        assert self.swa is not None
        count = settings.swa_number - 1 if self.swa_count < 0 else self.swa_count
        if self.swa_step != settings.epoch_before or count >= settings.swa_number:
            count = 0
        self.swa.update(count / (count + 1))
        self.swa_step, self.swa_count = self.step, count + 1

    def tensors(self) -> dict[str, Tensor]:
        return state_tensors(self.model, self.average, self.optimizer, self.swa)

    def counters(self) -> dict[str, Any]:
        """What a checkpoint holds beside tensors, as JSON."""
        counters = {name: getattr(self, name) for name in COUNTERS} | {"scaler": self.scaler.state_dict()}
        if self.swa is not None:
            counters |= {"swa_step": self.swa_step} | ({"swa_count": self.swa_count} if self.swa_count >= 0 else {})
        return counters

    def loss_scale(self) -> Tensor | None:
        """() float32 on the device, the scale of fp16, for which nothing waits; None in other precisions."""
        if not self.scaler.is_enabled():
            return None
        one = torch.ones((), device=next(self.model.parameters()).device)
        scaled: Tensor = self.scaler.scale(one)
        return scaled

    def load_counters(self, counters: Any) -> None:
        """Take over what `counters` gave. Raises UserError if something of it is missing."""
        missing = sorted({*COUNTERS, "scaler"} - counters.keys())
        goes_on = not missing and self.scaler.is_enabled() and counters["scaler"]  # {}: of a run without fp16 so far
        if missing or (goes_on and counters["scaler"].keys() != self.scaler.state_dict().keys()):
            raise UserError(
                f"the manifest of the checkpoint lacks counters ({', '.join(missing) or 'of the scaler'}), so no "
                "trainer wrote it: go back to another step, which `make checkpoints` lists, or start a new run (RUN=…)"
            )
        for name in COUNTERS:
            setattr(self, name, counters[name])
        self.swa_step = counters.get("swa_step", 0)
        self.swa_count = counters.get("swa_count", -1 if self.swa_step else 0)
        if goes_on:
            self.scaler.load_state_dict(counters["scaler"])


def make_state(config: Config, device: torch.device, *, initialise: bool) -> State:
    """The state before the first step; starting weights are fetched only to `initialise` a run, not to restore one."""
    torch.manual_seed(config.seed)
    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    model = build_model(config.model, initialise=initialise).to(device=device, memory_format=memory_format)  # type: ignore[call-overload]
    counts = take_over_counts(model)
    if config.fused_norm:
        fuse_norms(model)
    if config.model.sync_norm:
        sync_norms(model)
    still = {id(buffer) for buffer in freeze(model, config.optim.freeze_stages)}
    return State(
        model=model,
        average=Average(model) if config.keeps_ema else None,
        swa=Average(model) if config.average.late_epochs else None,
        optimizer=make_optimizer(model, config.optim),
        scaler=torch.amp.GradScaler(device.type, enabled=config.precision == "fp16"),
        batch_counts=[count for count in counts if id(count) not in still],
        draws=draws_numbers(model),
    )


def state_tensors(
    model: nn.Module, average: Average | None, optimizer: torch.optim.Optimizer, swa: Average | None = None
) -> dict[str, Tensor]:
    """Every tensor that training changes, by a stable name: what a checkpoint holds. References, not copies."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    if average is not None:
        tensors |= {f"ema.{name}": tensor for name, tensor in average.model.state_dict().items()}
    if swa is not None:
        tensors |= {f"swa.{name}": tensor for name, tensor in swa.model.state_dict().items()}
    return tensors | optimizer_tensors(model, optimizer)
