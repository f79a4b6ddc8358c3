"""Optimizer, learning rate and weight average. The learning rate is a pure function of the step: nothing to restore."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from trainer.config import OptimConfig


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


def make_optimizer(model: nn.Module, optim: OptimConfig) -> torch.optim.SGD:
    """SGD without weight decay on norms and biases, its momentum allocated now, so that a checkpoint's layout is fixed.

    A momentum of zeros gives the same first step as torch's missing one.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": optim.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=optim.peak_lr, momentum=optim.momentum, nesterov=optim.nesterov, fused=True)
    for p in parameters:
        optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p, memory_format=torch.preserve_format)
    return optimizer


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


@torch.no_grad()
def update_ema(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move the average towards the model after step number `step` (from 1): weights and BatchNorm buffers alike.

    The decay warms up as (1 + step) / (10 + step), so that a young average is not the random start
    (TensorFlow's ExponentialMovingAverage, `num_updates`).
    """
    weight = 1.0 - min(decay, (1 + step) / (10 + step))
    averaged, current = list(average.state_dict().values()), list(model.state_dict().values())
    floats = [i for i, tensor in enumerate(current) if tensor.is_floating_point()]
    torch._foreach_lerp_([averaged[i] for i in floats], [current[i] for i in floats], weight)
    for i in set(range(len(current))) - set(floats):  # num_batches_tracked
        averaged[i].copy_(current[i])


def state_tensors(model: nn.Module, average: nn.Module | None, optimizer: torch.optim.SGD) -> dict[str, Tensor]:
    """Every tensor that training changes, by a stable name: what a checkpoint holds. References, not copies."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    if average is not None:
        tensors |= {f"ema.{name}": tensor for name, tensor in average.state_dict().items()}
    for name, parameter in model.named_parameters():
        tensors[f"momentum.{name}"] = optimizer.state[parameter]["momentum_buffer"]
    return tensors
