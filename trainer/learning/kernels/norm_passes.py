"""The passes of BatchNorm over an activation, in Triton's language. `norm` starts them, and has their mathematics.

An activation is `rows` x `channels`. A program works on one tile of it, or on the tiles of one stripe of rows.
"""

from __future__ import annotations

import triton
import triton.language as tl


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
def statistics_kernel(
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
def combine_kernel(
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
def normalise_kernel(
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
def gradient_sums_kernel(
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
def input_gradient_kernel(
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
