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
import triton.language as tl
from torch import Tensor

ROWS, CHANNELS = 32, 64  # of a tile: a row of 64 bf16 channels is 128 bytes, one line of the cache
# Programs of a pass that reduces, for each multiprocessor: as many as its registers hold at once, so that none waits
# for a second round. Compiled for sm_90, they take 64 and 96 registers a thread.
AT_ONCE_STATISTICS, AT_ONCE_GRADIENTS = 8, 5
COMBINED = 1024  # partial results in a tile: at least 8 channels of them, which are 32 bytes


@triton.jit
def _place(channels, channel_blocks, tile_rows: tl.constexpr, tile_channels: tl.constexpr):
    """The block of rows of this program, and its channels. Neighbouring programs read neighbouring channels."""
    program = tl.program_id(0)
    c = (program % channel_blocks) * tile_channels + tl.arange(0, tile_channels)
    return (program // channel_blocks).to(tl.int64), c, c < channels


@triton.jit
def _affine(centred, invstd, weight, bias):
    """What forward and backward must compute alike, or the mask would not be the one of the output."""
    return centred * (invstd * weight)[None, :] + bias[None, :]


@triton.jit
def _statistics_kernel(
    x_ptr,
    partial_ptr,
    rows,
    channels,
    channel_blocks,
    stripe_rows,
    tile_rows: tl.constexpr,
    tile_channels: tl.constexpr,
):
    """Mean and sum of squared differences from it, over the rows of one stripe: partial[stripe, (mean, squares), c].

    Each place of the tile runs Welford's update over its own rows. Differences are small where values are large, so
    nothing cancels. The places are merged at the end (Chan, Golub & LeVeque 1983).
    """
    stripe, c, real = _place(channels, channel_blocks, tile_rows, tile_channels)
    first = stripe * stripe_rows
    last = tl.minimum(first + stripe_rows, rows)
    r = tl.arange(0, tile_rows)
    mean = tl.zeros([tile_rows, tile_channels], tl.float32)
    squares = tl.zeros([tile_rows, tile_channels], tl.float32)
    count = 0.0
    for start in range(0, stripe_rows, tile_rows):
        row = first + start + r
        seen = (row < last)[:, None] & real[None, :]
        x = tl.load(x_ptr + row[:, None] * channels + c[None, :], mask=seen, other=0.0).to(tl.float32)
        count += 1.0
        difference = tl.where(seen, x - mean, 0.0)
        mean += difference * (1.0 / count)
        squares += difference * (x - mean)
    counts = tl.maximum(last - first - r + tile_rows - 1, 0) // tile_rows
    counts = counts.to(tl.float32)[:, None]
    whole = tl.sum(mean * counts, axis=0) / (last - first).to(tl.float32)
    between = tl.where(counts > 0, mean - whole[None, :], 0.0)
    squares += counts * between * between
    place = partial_ptr + stripe * 2 * channels + c
    tl.store(place, whole, mask=real)
    tl.store(place + channels, tl.sum(squares, axis=0), mask=real)


@triton.jit
def _combine_kernel(
    partial_ptr, mean_ptr, invstd_ptr, running_mean_ptr, running_var_ptr,
    rows, channels, stripe_rows, stripes, momentum, eps, tile_rows: tl.constexpr, tile_channels: tl.constexpr,
):  # fmt: skip
    """The stripes' means and squares become mean (C,) and 1/sqrt(var + eps) (C,), and the running ones move."""
    c = tl.program_id(0) * tile_channels + tl.arange(0, tile_channels)
    real = c < channels
    s = tl.arange(0, tile_rows)
    total = tl.zeros([tile_rows, tile_channels], tl.float32)
    for start in range(0, stripes, tile_rows):
        stripe = start + s
        seen = (stripe < stripes)[:, None] & real[None, :]
        n = tl.minimum(rows - stripe.to(tl.int64) * stripe_rows, stripe_rows).to(tl.float32)[:, None]
        mean = tl.load(partial_ptr + stripe[:, None] * 2 * channels + c[None, :], mask=seen, other=0.0)
        total += tl.where(seen, n * mean, 0.0)
    count = rows.to(tl.float32)
    whole = tl.sum(total, axis=0) / count
    total = tl.zeros([tile_rows, tile_channels], tl.float32)
    for start in range(0, stripes, tile_rows):
        stripe = start + s
        seen = (stripe < stripes)[:, None] & real[None, :]
        n = tl.minimum(rows - stripe.to(tl.int64) * stripe_rows, stripe_rows).to(tl.float32)[:, None]
        place = partial_ptr + stripe[:, None] * 2 * channels + c[None, :]
        between = tl.load(place, mask=seen, other=0.0) - whole[None, :]
        squares = tl.load(place + channels, mask=seen, other=0.0)
        total += tl.where(seen, squares + n * between * between, 0.0)
    squares = tl.sum(total, axis=0)
    tl.store(mean_ptr + c, whole, mask=real)
    tl.store(invstd_ptr + c, 1.0 / tl.sqrt(squares / count + eps), mask=real)
    running_mean = tl.load(running_mean_ptr + c, mask=real)
    running_var = tl.load(running_var_ptr + c, mask=real)
    tl.store(running_mean_ptr + c, running_mean + momentum * (whole - running_mean), mask=real)
    tl.store(running_var_ptr + c, running_var + momentum * (squares / (count - 1.0) - running_var), mask=real)


@triton.jit
def _normalise_kernel(
    x_ptr, residual_ptr, y_ptr, mean_ptr, invstd_ptr, weight_ptr, bias_ptr, rows, channels, channel_blocks, stripe_rows,
    add: tl.constexpr, relu: tl.constexpr, tile_rows: tl.constexpr, tile_channels: tl.constexpr,
):  # fmt: skip
    """One tile of y."""
    block, c, real = _place(channels, channel_blocks, tile_rows, tile_channels)
    row = block * stripe_rows + tl.arange(0, tile_rows)
    seen = (row < rows)[:, None] & real[None, :]
    place = row[:, None] * channels + c[None, :]
    mean = tl.load(mean_ptr + c, mask=real, other=0.0)
    invstd = tl.load(invstd_ptr + c, mask=real, other=0.0)
    weight = tl.load(weight_ptr + c, mask=real, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + c, mask=real, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + place, mask=seen, other=0.0).to(tl.float32)
    y = _affine(x - mean[None, :], invstd, weight, bias)
    if add:
        y += tl.load(residual_ptr + place, mask=seen, other=0.0).to(tl.float32)
    if relu:
        y = tl.where(y < 0.0, 0.0, y)  # NaN is not below zero, so it stays
    tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=seen)


@triton.jit
def _gradient_sums_kernel(
    dy_ptr, x_ptr, y_ptr, g_ptr, mean_ptr, invstd_ptr, weight_ptr, bias_ptr, partial_ptr,
    rows, channels, channel_blocks, stripe_rows,
    add: tl.constexpr, relu: tl.constexpr, tile_rows: tl.constexpr, tile_channels: tl.constexpr,
):  # fmt: skip
    """sum(g) and sum(g * xhat) over the rows of one stripe: partial[stripe, (bias, weight), c]. With `add` it
    writes g, too."""
    stripe, c, real = _place(channels, channel_blocks, tile_rows, tile_channels)
    first = stripe * stripe_rows
    last = tl.minimum(first + stripe_rows, rows)
    mean = tl.load(mean_ptr + c, mask=real, other=0.0)
    invstd = tl.load(invstd_ptr + c, mask=real, other=0.0)
    weight = tl.load(weight_ptr + c, mask=real, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + c, mask=real, other=0.0).to(tl.float32)
    sums = tl.zeros([tile_rows, tile_channels], tl.float32)
    products = tl.zeros([tile_rows, tile_channels], tl.float32)
    for start in range(0, stripe_rows, tile_rows):
        row = first + start + tl.arange(0, tile_rows)
        seen = (row < last)[:, None] & real[None, :]
        place = row[:, None] * channels + c[None, :]
        g = tl.load(dy_ptr + place, mask=seen, other=0.0).to(tl.float32)
        centred = tl.load(x_ptr + place, mask=seen, other=0.0).to(tl.float32) - mean[None, :]
        if add:
            g = tl.where(tl.load(y_ptr + place, mask=seen, other=0.0).to(tl.float32) <= 0.0, 0.0, g)
            tl.store(g_ptr + place, g.to(g_ptr.dtype.element_ty), mask=seen)
        elif relu:
            g = tl.where(_affine(centred, invstd, weight, bias) <= 0.0, 0.0, g)
        sums += g
        products += tl.where(seen, g * centred, 0.0)
    place = partial_ptr + stripe * 2 * channels + c
    tl.store(place, tl.sum(sums, axis=0), mask=real)
    tl.store(place + channels, tl.sum(products, axis=0) * invstd, mask=real)


@triton.jit
def _input_gradient_kernel(
    g_ptr, x_ptr, dx_ptr, sums_ptr, mean_ptr, invstd_ptr, weight_ptr, bias_ptr,
    rows, channels, channel_blocks, stripe_rows,
    mask: tl.constexpr, training: tl.constexpr, tile_rows: tl.constexpr, tile_channels: tl.constexpr,
):  # fmt: skip
    """One tile of dx. With `mask` the ReLU's mask is still to be applied to g."""
    block, c, real = _place(channels, channel_blocks, tile_rows, tile_channels)
    row = block * stripe_rows + tl.arange(0, tile_rows)
    seen = (row < rows)[:, None] & real[None, :]
    place = row[:, None] * channels + c[None, :]
    mean = tl.load(mean_ptr + c, mask=real, other=0.0)
    invstd = tl.load(invstd_ptr + c, mask=real, other=0.0)
    weight = tl.load(weight_ptr + c, mask=real, other=0.0).to(tl.float32)
    g = tl.load(g_ptr + place, mask=seen, other=0.0).to(tl.float32)
    if mask or training:
        centred = tl.load(x_ptr + place, mask=seen, other=0.0).to(tl.float32) - mean[None, :]
    if mask:
        bias = tl.load(bias_ptr + c, mask=real, other=0.0).to(tl.float32)
        g = tl.where(_affine(centred, invstd, weight, bias) <= 0.0, 0.0, g)
    if training:
        count = rows.to(tl.float32)
        of_bias = tl.load(sums_ptr + c, mask=real, other=0.0) / count
        of_weight = tl.load(sums_ptr + channels + c, mask=real, other=0.0) / count
        g = g - of_bias[None, :] - centred * (invstd * of_weight)[None, :]
    tl.store(dx_ptr + place, (g * (invstd * weight)[None, :]).to(dx_ptr.dtype.element_ty), mask=seen)


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


def moments(x: Tensor, running_mean: Tensor, running_var: Tensor, momentum: float, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and 1 / sqrt(variance + eps) over all but the channels of x (N, C, H, W): (C,) float32 each.

    The running statistics move towards them by `momentum`, in place, as torch's do: with the unbiased variance.
    """
    grid = _Grid.of(x, AT_ONCE_STATISTICS)
    partial = torch.empty(grid.stripes, 2, grid.channels, dtype=torch.float32, device=x.device)
    mean, invstd = torch.empty(2, grid.channels, dtype=torch.float32, device=x.device)
    grid.launch(_statistics_kernel, x, partial)
    width = min(CHANNELS, max(8, triton.next_power_of_2(grid.channels // 64)))
    _combine_kernel[(triton.cdiv(grid.channels, width),)](
        partial, mean, invstd, running_mean, running_var, grid.rows, grid.channels, grid.stripe, grid.stripes,
        momentum, eps, tile_rows=COMBINED // width, tile_channels=width, enable_fp_fusion=True,
    )  # fmt: skip
    return mean, invstd


def normalise(
    x: Tensor, residual: Tensor | None, mean: Tensor, invstd: Tensor, weight: Tensor, bias: Tensor, *, relu: bool
) -> Tensor:
    """(N, C, H, W) like x, normalised, with the residual added and the ReLU applied where they are asked for."""
    y = torch.empty_like(x)
    _Grid.of(x).launch(
        _normalise_kernel, x, x if residual is None else residual, y, mean, invstd, weight, bias,
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
        _gradient_sums_kernel, dy, x, x if y is None else y, x if g is None else g, mean, invstd, weight, bias, partial,
        add=y is not None, relu=relu,
    )  # fmt: skip
    sums = partial.sum(0)
    _Grid.of(x).launch(
        _input_gradient_kernel, dy if g is None else g, x, dx, sums, mean, invstd, weight, bias,
        mask=relu and g is None, training=training,
    )  # fmt: skip
    return dx, g, sums
