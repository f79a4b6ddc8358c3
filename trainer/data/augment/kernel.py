"""Flip, normalise and cast in one pass over memory, as a Triton kernel. torch's own lines take six.

`batch` has those lines and says what is computed. They give the same bits. This module needs Triton, so it is imported
when it is needed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def normalise_row(images, flips, mean, std, result, height, width, block: tl.constexpr):
    """One row of one image: `width` pixels of 3 channels, which are neighbours in memory, before and after."""
    row = tl.program_id(0).to(tl.int64)
    value = tl.arange(0, block)
    real = value < 3 * width
    channel = value % 3
    is_flipped = tl.load(flips + row // height) != 0
    source = tl.where(is_flipped, 3 * (width - 1 - value // 3) + channel, value)
    pixel = tl.load(images + row * width * 3 + source, mask=real, other=0).to(tl.float32)
    centred = pixel - tl.load(mean + channel)
    scaled = tl.div_rn(centred, tl.load(std + channel))  # as IEEE 754 rounds; `/` may be an approximation
    tl.store(result + row * width * 3 + value, scaled.to(result.dtype.element_ty), mask=real)


def flip_and_normalise(images: Tensor, flips: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    """(N, H, W, 3) uint8 and (N,) bool to normalised (N, 3, H, W), channels last in memory. `mean`, `std`: (3,)."""
    images = images.contiguous()
    n, height, width, channels = images.shape
    result = torch.empty_like(images, dtype=dtype)
    block = triton.next_power_of_2(channels * width)
    normalise_row[(n * height,)](
        images, flips.view(torch.uint8), mean, std, result, height, width, block, enable_fp_fusion=False
    )
    return result.permute(0, 3, 1, 2)
