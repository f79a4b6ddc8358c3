"""The first convolution of a ResNet over blocks of 2x2 pixels: the same sums, and four times as many channels.

It has 7x7 pixels, stride 2 and 3 channels, with which tensor cores do little. Over blocks it has 4x4 of them, stride 1
and 12 channels (the "space to depth" of MLPerf's ResNet-50).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.contract import UserError


class BlockedStem(nn.Conv2d):
    """A 7x7 convolution of stride 2, computed over blocks. Its weight stays (channels, 3, 7, 7)."""

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W), H and W even, to (N, channels, H/2, W/2), in the memory format of the weight."""
        pixels = to_blocks(F.pad(images, (4, 2, 4, 2)))  # 3 on each side are the convolution's; block 0 needs a fourth
        weight = to_blocks(F.pad(self.weight, (1, 0, 1, 0)))  # 8x8: the new row and column are zeros
        if not self.weight.is_contiguous(memory_format=torch.channels_last):
            pixels, weight = pixels.contiguous(), weight.contiguous()
        return F.conv2d(pixels, weight, self.bias)


def to_blocks(images: Tensor) -> Tensor:
    """(N, C, H, W) to (N, 4 C, H/2, W/2), channels last in memory: the pixels of a 2x2 block become channels."""
    n, channels, height, width = images.shape
    rows = images.permute(0, 2, 3, 1).view(n, height // 2, 2, width // 2, 2, channels)
    return rows.transpose(2, 3).reshape(n, height // 2, width // 2, 4 * channels).permute(0, 3, 1, 2)


def block_stem(model: nn.Module, name: str) -> None:
    """Make the model's first convolution a `BlockedStem`, with the same names and weights.

    Raises UserError for a model without a first convolution of 7x7 pixels, stride 2 and 3 channels named conv1.
    """
    conv = getattr(model, "conv1", None)
    wanted = {"in_channels": 3, "kernel_size": (7, 7), "stride": (2, 2), "padding": (3, 3), "dilation": (1, 1)}
    if type(conv) is not nn.Conv2d or any(getattr(conv, key) != value for key, value in wanted.items()):
        raise UserError(
            f"--model.blocked-stem needs a first convolution of 7x7 pixels and stride 2, and --model.name {name!r} has "
            "none: leave the option out, or choose a ResNet"
        )
    conv.__class__ = BlockedStem
