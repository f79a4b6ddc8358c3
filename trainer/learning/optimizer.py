"""The optimizer. Its learning rate is set at each step: `schedule` computes it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.recipes.config import OptimConfig


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


def set_lr(optimizer: torch.optim.Optimizer, lr: float | Tensor) -> None:
    """For every group. A tensor, () float32, is what a captured update reads."""
    for group in optimizer.param_groups:
        group["lr"] = lr
