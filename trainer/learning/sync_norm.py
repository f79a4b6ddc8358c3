"""`--model.sync-norm`: BatchNorm over the micro-batches that all processes compute at the same time.

torch's own works on GPUs alone, and makes the host wait in each layer. This one is plain operations: slower, and the
same on a CPU. The running statistics are then the same in all processes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trainer.contract import UserError
from trainer.learning.batch_counts import UncountedBatchNorm

IMAGES_AND_PIXELS = (0, 2, 3)  # of (N, C, H, W)


class _Together(torch.autograd.Function):
    """y = (x - mean) / sqrt(var + eps) * weight + bias, mean and var over all processes, whose batches are as large."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        var, mean = torch.var_mean(x.float(), IMAGES_AND_PIXELS, correction=0)
        mine = torch.stack([mean, var])
        found = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(found, mine)
        means, variances = torch.stack(found).unbind(1)  # (processes, C)
        mean = means.mean(0)
        var = (variances + (means - mean).square()).mean(0)
        invstd = torch.rsqrt(var + eps)
        ctx.save_for_backward(x, weight, mean, invstd)
        ctx.mark_non_differentiable(mean, var)
        return _times(_normal(x, mean, invstd), weight, bias).to(x.dtype), mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, invstd = ctx.saved_tensors
        dy, normal = dy.float(), _normal(x, mean, invstd)
        mine = torch.stack([dy.sum(IMAGES_AND_PIXELS), (dy * normal).sum(IMAGES_AND_PIXELS)])  # of bias, of weight
        sums = mine.clone()
        torch.distributed.all_reduce(sums)
        dy_mean, pull = (sums / (dy.numel() / dy.shape[1] * torch.distributed.get_world_size())).unbind()
        dx = _times(dy - _times(normal, pull, dy_mean), weight * invstd)
        return dx.to(x.dtype), mine[1], mine[0], None


def _normal(x: Tensor, mean: Tensor, invstd: Tensor) -> Tensor:
    return (x.float() - mean[:, None, None]) * invstd[:, None, None]


def _times(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    scaled = x * weight[:, None, None]
    return scaled if bias is None else scaled + bias[:, None, None]


class SyncedBatchNorm(UncountedBatchNorm):
    """Normalises together with the other processes, where gradients are computed. Else each is alone."""

    def forward(self, images: Tensor) -> Tensor:
        together = self.training and torch.is_grad_enabled() and torch.distributed.is_initialized()
        if not together:
            return super().forward(images)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        y, mean, var = _Together.apply(images, self.weight, self.bias, self.eps)
        count = images.numel() / images.shape[1] * torch.distributed.get_world_size()
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
        normal: Tensor = y
        return normal


def sync_norms(model: nn.Module) -> None:
    """Let the model's BatchNorm layers work together, in place. Raises UserError where it has none."""
    layers = [layer for layer in model.modules() if type(layer) is UncountedBatchNorm and layer.affine]
    if not layers:
        raise UserError("--model.sync-norm: this network has no BatchNorm; leave the option out")
    for layer in layers:
        layer.__class__ = SyncedBatchNorm
