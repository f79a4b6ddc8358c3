"""`--fused-norm`: a ResNet whose BatchNorms do what follows them, too, in one pass over the activations.

Names, parameters and buffers of the model stay what they are; only the forward pass of its blocks is another.
The kernels and their mathematics are in `kernels.norm`, which is imported when it is needed: it needs Triton.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from trainer.learning.batch_counts import UncountedBatchNorm


class _Normalise(torch.autograd.Function):
    """y = BatchNorm(x) [+ residual] [then ReLU]. Keeps x and two vectors; with a residual the output, too."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor,
        running_mean: Tensor, running_var: Tensor, momentum: float, eps: float, relu: bool, training: bool,
    ) -> Tensor:  # fmt: skip
        from trainer.learning.kernels.norm import apply_norm, combine, statistics

        if training:
            mean, invstd = combine(statistics(x), running_mean, running_var, momentum, eps)
            if not torch.is_inference_mode_enabled():
                torch.autograd.graph.increment_version([running_mean, running_var])
        else:
            mean, invstd = running_mean.clone(), torch.rsqrt(running_var + eps)
        y = apply_norm(x, residual, mean, invstd, weight, bias, relu=relu)
        ctx.save_for_backward(x, y if residual is not None else None, mean, invstd, weight, bias)
        ctx.relu, ctx.training = relu, training
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        from trainer.learning.kernels.norm import gradients

        x, y, mean, invstd, weight, bias = ctx.saved_tensors
        dy = dy.contiguous(memory_format=torch.channels_last)
        dx, g, sums = gradients(dy, x, y, mean, invstd, weight, bias, relu=ctx.relu, training=ctx.training)
        return dx, g, sums[1].to(weight.dtype), sums[0].to(bias.dtype), *[None] * 6


class Norm(UncountedBatchNorm):
    """BatchNorm by the kernels. (N, C, H, W) in and out, channels_last; bf16, fp16 or fp32."""

    relu = False

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Raises ValueError where training has one value for each channel, as torch does: it has no variance."""
        if self.training and x.numel() <= x.shape[1]:
            raise ValueError(f"expected more than 1 value per channel when training, got input size {x.shape}")
        x = x.contiguous(memory_format=torch.channels_last)
        if residual is not None:
            residual = residual.to(x.dtype).contiguous(memory_format=torch.channels_last)
        y: Tensor = _Normalise.apply(
            x, residual, self.weight, self.bias, self.running_mean, self.running_var,
            self.momentum, self.eps, self.relu, self.training,
        )  # fmt: skip
        return y


class NormReLU(Norm):
    """ReLU(BatchNorm(x) + residual)."""

    relu = True


class FusedBasicBlock(BasicBlock):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        out = self.bn1(self.conv1(x))
        identity = x if self.downsample is None else self.downsample(x)
        y: Tensor = self.bn2(self.conv2(out), identity)
        return y


class FusedBottleneck(Bottleneck):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        identity = x if self.downsample is None else self.downsample(x)
        y: Tensor = self.bn3(self.conv3(out), identity)
        return y


FUSED: dict[type[nn.Module], type[nn.Module]] = {BasicBlock: FusedBasicBlock, Bottleneck: FusedBottleneck}


def fuse_norms(model: nn.Module) -> None:
    """Let the BatchNorms of a torchvision ResNet do what follows them, in place. They no longer count batches.

    Raises TypeError for another model.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if type(model) is not ResNet or {type(norm) for norm in norms} != {UncountedBatchNorm}:
        raise TypeError(f"{type(model).__name__} is no ResNet whose BatchNorms are torch's")
    for norm in norms:
        norm.__class__ = NormReLU
    model.relu = nn.Identity()  # the stem's; it has no weights
    for block in [block for block in model.modules() if type(block) in FUSED]:
        block.__class__ = FUSED[type(block)]
        if isinstance(block.downsample, nn.Sequential):
            block.downsample[1].__class__ = Norm
