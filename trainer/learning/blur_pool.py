"""`--model.blur-pool`: a ResNet that blurs what it is about to shrink, so that it does not alias (Zhang 2019).

Names and tensors of the model stay torchvision's. What it computes does not: an exported file says so.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

FEWEST_CHANNELS = 16  # of what is blurred before a convolution: images are not


def _blurred(x: Tensor, stride: int = 1) -> Tensor:
    """Two means of 2x2 pixels are one of 3x3 with weights 1 2 1, 2 4 2, 1 2 1 over 16. Around x there are zeros."""
    return F.avg_pool2d(F.avg_pool2d(x, 2, stride=1, padding=1), 2, stride=stride)


class _Blur(torch.autograd.Function):
    """Keeps nothing for the backward pass: with its symmetric weights, a blur of stride 1 is its own transpose."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stride: int) -> Tensor:
        nhwc = x.is_contiguous(memory_format=torch.channels_last)
        ctx.format = torch.channels_last if nhwc else torch.contiguous_format
        ctx.shape, ctx.stride = x.shape, stride
        return _blurred(x, stride)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        if ctx.stride == 1:
            return _blurred(dy.contiguous(memory_format=ctx.format)), None
        apart = torch.zeros(ctx.shape, dtype=dy.dtype, device=dy.device).to(memory_format=ctx.format)
        apart[:, :, :: ctx.stride, :: ctx.stride] = dy
        return _blurred(apart), None


def blur(x: Tensor, stride: int = 1) -> Tensor:
    """(N, C, H, W) to every `stride`-th pixel of its blurred form: (N, C, ceil(H / stride), ceil(W / stride))."""
    y: Tensor = _Blur.apply(x, stride)
    return y


class BlurredConv(nn.Conv2d):
    """A convolution of a blurred input. One of 1x1 pixels needs the blur only where it reads."""

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel_size == (1, 1):
            return F.conv2d(blur(x, self.stride[0]), self.weight, self.bias, groups=self.groups)
        return super().forward(blur(x))


class BlurredMaxPool(nn.MaxPool2d):
    """Maxima around every pixel, blurred, and then every second one of them."""

    stride: int

    def forward(self, x: Tensor) -> Tensor:
        maxima = F.max_pool2d(x, self.kernel_size, stride=1, padding=self.padding)
        return blur(maxima, self.stride)


def blur_pools(model: nn.Module, which: Literal["convs", "all"]) -> None:
    """Blur before the strided convolutions of a torchvision ResNet, in place; `all`: in its max pooling, too.

    `convs` is what FFCV's ResNets compute (`use_blurpool`), and `all` Composer's BlurPool.
    """
    for module in model.modules():
        if type(module) is nn.Conv2d and max(module.stride) > 1 and module.in_channels >= FEWEST_CHANNELS:
            module.__class__ = BlurredConv
        elif type(module) is nn.MaxPool2d and which == "all":
            module.__class__ = BlurredMaxPool
