"""The pass of a 1x1 convolution over an activation, in Triton's language. `convolution` starts it."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def pointwise_kernel(
    x_ptr, mean_ptr, scale_ptr, bias_ptr, weight_ptr, y_ptr, partial_ptr, rows, channels, outputs, output_blocks,
    prologue: tl.constexpr, tile_rows: tl.constexpr, tile_channels: tl.constexpr, tile_outputs: tl.constexpr,
):  # fmt: skip
    """One tile of y = act(x) @ weight.T, and its statistics: partial[block of rows, (mean, squares), output]."""
    program = tl.program_id(0)
    block = (program // output_blocks).to(tl.int64)
    row = block * tile_rows + tl.arange(0, tile_rows)
    k = (program % output_blocks) * tile_outputs + tl.arange(0, tile_outputs)
    in_rows, in_outputs = row < rows, k < outputs
    sums = tl.zeros([tile_rows, tile_outputs], tl.float32)
    for start in range(0, channels, tile_channels):
        c = start + tl.arange(0, tile_channels)
        real = c < channels
        x = tl.load(x_ptr + row[:, None] * channels + c[None, :], mask=in_rows[:, None] & real[None, :], other=0.0)
        if prologue:
            mean = tl.load(mean_ptr + c, mask=real, other=0.0)
            scale = tl.load(scale_ptr + c, mask=real, other=0.0)
            bias = tl.load(bias_ptr + c, mask=real, other=0.0)
            z = (x.to(tl.float32) - mean[None, :]) * scale[None, :] + bias[None, :]
            x = tl.where(z < 0.0, 0.0, z).to(x.dtype)
        w = tl.load(
            weight_ptr + k[None, :] * channels + c[:, None], mask=in_outputs[None, :] & real[:, None], other=0.0
        )
        sums = tl.dot(x, w, sums, input_precision="ieee")  # float32 stays float32, and is not cut to TF32
    y = sums.to(y_ptr.dtype.element_ty)
    seen = in_rows[:, None] & in_outputs[None, :]
    tl.store(y_ptr + row[:, None] * outputs + k[None, :], y, mask=seen)
    value = tl.where(seen, y.to(tl.float32), 0.0)  # what is stored is what will be normalised
    count = tl.minimum(rows - block * tile_rows, tile_rows).to(tl.float32)
    whole = tl.sum(value, axis=0) / count
    difference = tl.where(seen, value - whole[None, :], 0.0)
    place = partial_ptr + block * 2 * outputs + k
    tl.store(place, whole, mask=in_outputs)
    tl.store(place + outputs, tl.sum(difference * difference, axis=0), mask=in_outputs)
