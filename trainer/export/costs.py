"""What a network costs to keep and to run: parameters, and multiplications of one image."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(model: nn.Module) -> int:
    """Numbers that training changes; statistics of BatchNorm are none."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_gmacs(model: nn.Module, pixels: int) -> float:
    """1e9 multiplications of one image of `pixels` a side: in convolutions and products of matrices."""
    image = torch.zeros(1, 3, pixels, pixels, device=next(model.parameters()).device)
    with FlopCounterMode(display=False) as counter, torch.enable_grad():  # else attention is one call that it lacks
        model(image)
    return float(counter.get_total_flops()) / 2e9
