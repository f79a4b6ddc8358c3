"""BatchNorm's counts of batches (`num_batches_tracked`), which one operation raises for all layers at each step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class UncountedBatchNorm(nn.BatchNorm2d):
    """torch's own, in fewer launches: the count of batches, which a fixed momentum never reads, is raised outside."""

    def forward(self, images: Tensor) -> Tensor:
        return F.batch_norm(
            images, self.running_mean, self.running_var, self.weight, self.bias, self.training,
            0.0 if self.momentum is None else self.momentum, self.eps,
        )  # fmt: skip


def take_over_counts(model: nn.Module) -> list[Tensor]:
    """Make the model's BatchNorm layers stop counting. Returns their counts, 0-d int64: whoever trains raises them.

    Names and buffers stay. A layer that averages over all batches (momentum None) needs its count, and keeps counting.
    """
    counts: list[Tensor] = []
    for layer in model.modules():
        if type(layer) is nn.BatchNorm2d and layer.momentum is not None and layer.num_batches_tracked is not None:
            layer.__class__ = UncountedBatchNorm
            counts.append(layer.num_batches_tracked)
    return counts


@torch.no_grad()
def raise_counts(counts: list[Tensor], batches: int) -> None:
    """`batches` more have gone through each layer."""
    if counts:
        torch._foreach_add_(counts, batches)
