"""BatchNorm with what follows it, as Triton kernels over channels_last activations, forward and backward.

Batch normalisation (Ioffe & Szegedy, arXiv:1502.03167), for each channel over the M = N*H*W rows of x:

    mean = sum(x) / M        var = sum((x - mean)^2) / M        xhat = (x - mean) / sqrt(var + eps)
    y = weight * xhat + bias,  or relu(y),  or relu(y + residual)

    g = dy where y > 0, else 0                  the gradient before the ReLU; the residual's gradient is g itself
    dbias = sum(g)           dweight = sum(g * xhat)
    dx = weight / sqrt(var + eps) * (g - dbias / M - xhat * dweight / M)

A channels_last tensor is M rows of C channels, and neighbours in memory are channels. So a tile is rows x channels.
Arithmetic is float32 whatever x is. Each program keeps its sums to itself and writes them down; a second kernel adds
them in a fixed order. So there are no atomics, and the same input gives the same bits.

How often training reads or writes a whole activation, there + back; the table of all layers is in
docs/decisions/fused-convolutions.md:

    norm               torch 3 + 5    here 3 + 5    x, x -> y               back: dy x, dy x -> dx
    norm, ReLU         torch 5 + 8    here 3 + 5    the same
    norm, add, ReLU    torch 8 + 8    here 4 + 7    x, x residual -> y      back: dy x y -> g, g x -> dx

The ReLU's mask is computed again from x, which is read anyway. With a residual the output is read instead, which the
next convolution keeps anyway. The first pass then writes g, which is the residual's gradient, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from trainer.learning.kernels.norm_passes import (
    combine_kernel,
    gradient_sums_kernel,
    input_gradient_kernel,
    normalise_kernel,
    statistics_kernel,
)

ROWS, CHANNELS = 32, 64  # of a tile: a row of 64 bf16 channels is 128 bytes, one line of the cache
# Programs of a pass that reduces, for each multiprocessor: as many as its registers hold at once, so that none waits
# for a second round. Compiled for sm_90, they take 64 and 96 registers a thread.
AT_ONCE_STATISTICS, AT_ONCE_GRADIENTS = 8, 5
COMBINED = 1024  # partial results in a tile: at least 8 channels of them, which are 32 bytes


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@dataclass(frozen=True)
class _Grid:
    """How the programs of a kernel share the rows of an activation."""

    rows: int  # N * H * W
    channels: int
    channel_blocks: int  # programs side by side
    stripe: int  # rows of a program
    stripes: int  # programs one below the other

    @classmethod
    def of(cls, x: Tensor, at_once: int = 0) -> _Grid:
        """A tile for each program; or, with `at_once` programs for each multiprocessor, stripes of several tiles."""
        channels = x.shape[1]
        rows, blocks, stripe = x.numel() // channels, triton.cdiv(channels, CHANNELS), ROWS
        if at_once:
            stripe *= triton.cdiv(rows, ROWS * max(1, at_once * _multiprocessors(x.device) // blocks))
        return cls(rows, channels, blocks, stripe, triton.cdiv(rows, stripe))

    def launch(self, kernel: Any, *arguments: Any, **constants: Any) -> None:
        """Start `kernel` with `arguments`, then the numbers of the grid. Multiplications and additions may be fused."""
        kernel[(self.stripes * self.channel_blocks,)](
            *arguments, self.rows, self.channels, self.channel_blocks, self.stripe,
            **constants, tile_rows=ROWS, tile_channels=CHANNELS, enable_fp_fusion=True,
        )  # fmt: skip


@dataclass(frozen=True)
class Partial:
    """Statistics of stripes of rows, before they are combined."""

    values: Tensor  # (stripes, 2, C) float32: means, and sums of squared differences from them
    rows: int  # of all stripes
    stripe: int  # rows of one; the last may have fewer


def statistics(x: Tensor) -> Partial:
    """Those of x (N, C, H, W), over all but its channels."""
    grid = _Grid.of(x, AT_ONCE_STATISTICS)
    values = torch.empty(grid.stripes, 2, grid.channels, dtype=torch.float32, device=x.device)
    grid.launch(statistics_kernel, x, values)
    return Partial(values, grid.rows, grid.stripe)


def combine(
    partial: Partial, running_mean: Tensor, running_var: Tensor, momentum: float, eps: float
) -> tuple[Tensor, Tensor]:
    """Mean and 1 / sqrt(variance + eps), (C,) float32 each.

    The running statistics move towards them by `momentum`, in place, as torch's do: with the unbiased variance.
    """
    stripes, _, channels = partial.values.shape
    mean, invstd = torch.empty(2, channels, dtype=torch.float32, device=partial.values.device)
    width = min(CHANNELS, max(8, triton.next_power_of_2(channels // 64)))
    combine_kernel[(triton.cdiv(channels, width),)](
        partial.values, mean, invstd, running_mean, running_var, partial.rows, channels, partial.stripe, stripes,
        momentum, eps, tile_rows=COMBINED // width, tile_channels=width, enable_fp_fusion=True,
    )  # fmt: skip
    return mean, invstd


def apply_norm(
    x: Tensor, residual: Tensor | None, mean: Tensor, invstd: Tensor, weight: Tensor, bias: Tensor, *, relu: bool
) -> Tensor:
    """(N, C, H, W) like x, normalised, with the residual added and the ReLU applied where they are asked for."""
    y = torch.empty_like(x)
    _Grid.of(x).launch(
        normalise_kernel, x, x if residual is None else residual, y, mean, invstd, weight, bias,
        add=residual is not None, relu=relu,
    )  # fmt: skip
    return y


def gradients(
    dy: Tensor, x: Tensor, y: Tensor | None, mean: Tensor, invstd: Tensor, weight: Tensor, bias: Tensor,
    *, relu: bool, training: bool,
) -> tuple[Tensor, Tensor | None, Tensor]:  # fmt: skip
    """The gradients of x, of the residual (where `y`, the output with it, is given), and of (bias, weight): (2, C).

    `training` tells whether mean and invstd came from x itself.
    """
    grid = _Grid.of(x, AT_ONCE_GRADIENTS)
    partial = torch.empty(grid.stripes, 2, grid.channels, dtype=torch.float32, device=x.device)
    g, dx = None if y is None else torch.empty_like(x), torch.empty_like(x)
    grid.launch(
        gradient_sums_kernel, dy, x, x if y is None else y, x if g is None else g, mean, invstd, weight, bias, partial,
        add=y is not None, relu=relu,
    )  # fmt: skip
    sums = partial.sum(0)
    _Grid.of(x).launch(
        input_gradient_kernel, dy if g is None else g, x, dx, sums, mean, invstd, weight, bias,
        mask=relu and g is None, training=training,
    )  # fmt: skip
    return dx, g, sums
