"""The optimizers, each with all of its state from the start, so that a checkpoint's layout is fixed.

The learning rate is set at each step: `schedule` computes it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trainer.learning.groups import groups_of
from trainer.learning.lamb import Lamb
from trainer.recipes.config import OptimConfig

# What torch calls a part of an optimizer's state, and what it is called in a checkpoint.
SLOTS = {"momentum_buffer": "momentum", "exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}


class SGD(torch.optim.SGD):
    """torch's fused one. A momentum of zeros gives the same first step as torch's missing one."""

    def __init__(self, groups: list[dict[str, Any]], optim: OptimConfig):
        super().__init__(groups, lr=optim.peak_lr, momentum=optim.momentum, nesterov=optim.nesterov, fused=True)
        if optim.decoupled_decay:
            self.register_step_pre_hook(shrink)
        for group in self.param_groups:
            if optim.decoupled_decay:
                group["shrinks"], group["weight_decay"] = group["weight_decay"] / group["lr"], 0.0
            for parameter in group["params"]:
                zeros = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                self.state[parameter]["momentum_buffer"] = zeros


@torch.no_grad()
def shrink(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """A weight decay that no gradient and no momentum sees, before each step (Composer's DecoupledSGDW).

    Weights are multiplied by 1 - weight_decay x lr / peak_lr. In fp16 a step whose gradients overflow changes nothing:
    torch's GradScaler says so in `found_inf`.
    """
    overflow = getattr(optimizer, "found_inf", None)
    for group in optimizer.param_groups:
        if group["shrinks"]:
            kept = 1 - group["shrinks"] * group["lr"]
            kept = kept if overflow is None else torch.where(overflow > 0, 1.0, kept)
            torch._foreach_mul_([p for p in group["params"] if p.grad is not None], kept)


class AdamW(torch.optim.AdamW):
    """torch's fused one. A CUDA graph may capture it."""

    def __init__(self, groups: list[dict[str, Any]], optim: OptimConfig):
        super().__init__(groups, lr=optim.peak_lr, betas=optim.betas, eps=optim.eps, fused=True, capturable=True)
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        self.steps = torch.zeros(len(parameters), device=parameters[0].device)  # torch counts them for each parameter
        for parameter, steps in zip(parameters, self.steps.unbind(), strict=True):
            zeros = [torch.zeros_like(parameter, memory_format=torch.preserve_format) for _ in range(2)]
            self.state[parameter] |= {"step": steps, "exp_avg": zeros[0], "exp_avg_sq": zeros[1]}


def make_optimizer(model: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer of what trains: frozen parameters have no state."""
    groups = [group | {"lr": optim.peak_lr * group["lr_scale"]} for group in groups_of(model, optim)]
    if optim.name == "adamw":
        return AdamW(groups, optim)
    if optim.name == "lamb":
        return Lamb(groups, optim.peak_lr, optim.betas, optim.eps)
    return SGD(groups, optim)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """For every group, by its own scale. A learning rate that `hold_lr` holds changes in place."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr * group["lr_scale"])
        else:
            group["lr"] = lr * group["lr_scale"]


def hold_lr(optimizer: torch.optim.Optimizer) -> None:
    """Make each group's learning rate a tensor, () float32, that stays where it is: a captured update reads it."""
    for group in optimizer.param_groups:
        group["lr"] = torch.zeros((), device=group["params"][0].device)


def clip_gradients(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, longest: float) -> None:
    """Shrink the gradients of all parameters by one factor, so that together they are at most as long as `longest`.

    It waits for no device. With fp16 their scale is taken off first.
    """
    scaler.unscale_(optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    nn.utils.clip_grad_norm_(parameters, longest)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What the optimizer keeps from step to step, by a stable name."""
    tensors = {
        f"{kind}.{name}": optimizer.state[parameter][slot]
        for name, parameter in model.named_parameters() if parameter.requires_grad
        for slot, kind in SLOTS.items() if slot in optimizer.state[parameter]
    }  # fmt: skip
    if isinstance(optimizer, AdamW | Lamb):
        tensors["optimizer.steps"] = optimizer.steps
    return tensors
