"""A 1x1 convolution that normalises what it reads and measures what it writes. No model uses it yet.

Over channels_last activations a 1x1 convolution with stride 1 is a product of matrices, for each of N*H*W rows:

    z = relu((x - mean) * scale + bias)      scale = weight / sqrt(var + eps) of the BatchNorm before; or z = x
    y = z @ w.T                              in float32, rounded once to the type of x
    mean and sum of squared differences of y over each block of rows, of the BatchNorm behind

So BatchNorm and ReLU before it need no pass of their own, and the statistics behind it none either. The blocks' results
have the form of `norm`'s stripes, and are combined as those are. What it saves: docs/decisions/fused-convolutions.md.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from trainer.learning.kernels.convolution_passes import pointwise_kernel
from trainer.learning.kernels.norm import Partial

TILE_ROWS, TILE_CHANNELS = 128, 64


def pointwise(x: Tensor, weight: Tensor, before: tuple[Tensor, Tensor, Tensor] | None = None) -> tuple[Tensor, Partial]:
    """Convolve x (N, C, H, W), channels_last, by `weight` (K, C, 1, 1), of the same type: (N, K, H, W), channels_last.

    `before` are mean, scale and bias, (C,) float32 each, of a BatchNorm and a ReLU that x goes through first. The
    second result is what `norm.combine` takes: the statistics of the output, in float32.
    """
    n, channels, height, width = x.shape
    outputs, rows = weight.shape[0], n * height * width
    y = torch.empty(n, outputs, height, width, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    tile_outputs = 64 if outputs <= 64 else 128
    blocks, output_blocks = triton.cdiv(rows, TILE_ROWS), triton.cdiv(outputs, tile_outputs)
    partial = torch.empty(blocks, 2, outputs, dtype=torch.float32, device=x.device)
    mean, scale, bias = before or (x, x, x)
    pointwise_kernel[(blocks * output_blocks,)](
        x, mean, scale, bias, weight, y, partial, rows, channels, outputs, output_blocks,
        prologue=before is not None, tile_rows=TILE_ROWS, tile_channels=TILE_CHANNELS, tile_outputs=tile_outputs,
        num_warps=tile_outputs // 16, num_stages=3, enable_fp_fusion=True,
    )  # fmt: skip
    return y, Partial(partial, rows, TILE_ROWS)
