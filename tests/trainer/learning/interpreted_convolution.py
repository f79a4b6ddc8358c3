"""What the 1x1 convolution computes, in Triton's interpreter: `test_kernels.py` runs this file in a process of its own.

Not in bf16: the interpreter of Triton 3.9 multiplies the bits of such matrices as integers.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.trainer.learning.interpreted_norm import FP32, UNIT, activations, assert_close
from trainer.learning.kernels.convolution import pointwise
from trainer.learning.kernels.norm import combine

SHAPES = [  # (N, C, H, W) and outputs: rows that 128 does not divide, less and more than one tile of each
    ((1, 64, 9, 15), 64),
    ((3, 64, 11, 13), 256),
    ((1, 256, 5, 7), 128),
    ((2, 100, 9, 9), 72),
    ((2, 512, 1, 1), 64),
]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(3)


def weights(outputs: int, channels: int, dtype: torch.dtype) -> Tensor:
    return (torch.randn(outputs, channels, 1, 1) / channels**0.5).to(dtype)


def normalised(x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """What the convolution multiplies, in float64: rounded to the type of x before, as by a BatchNorm of its own."""
    z = (x.double() - mean[:, None, None].double()) * scale[:, None, None].double() + bias[:, None, None].double()
    return torch.relu(z).to(x.dtype).double()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("prologue", [True, False])
@pytest.mark.parametrize(("shape", "outputs"), SHAPES)
def test_output_and_statistics_are_those_of_float64(
    shape: tuple[int, ...], outputs: int, prologue: bool, dtype: torch.dtype
) -> None:
    channels = shape[1]
    x, weight = activations(shape, dtype, mean=0.5), weights(outputs, channels, dtype)
    before = (torch.randn(channels), torch.randn(channels), torch.randn(channels)) if prologue else None
    y, partial = pointwise(x, weight, before)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    z = x.double() if before is None else normalised(x, *before)
    truth = nn.functional.conv2d(z, weight.double())
    terms = nn.functional.conv2d(z.abs(), weight.double().abs())
    # Roundings: of y; of each sum of float32; and of z, which float32 may round to the other neighbour now and then.
    assert_close(y, truth, 1.01 * UNIT[dtype], (channels * FP32 + (2 * UNIT[dtype] if prologue else 0)) * terms)
    running_mean, running_var = torch.zeros(outputs), torch.ones(outputs)
    mean, invstd = combine(partial, running_mean, running_var, 0.25, 1e-5)
    stored = y.double()
    assert_close(mean, stored.mean((0, 2, 3)), 0, 64 * FP32 * float(stored.abs().max()))
    var = stored.var((0, 2, 3), correction=0)
    assert_close(invstd, (var + 1e-5).rsqrt(), 1e-4, 0)
    assert_close(running_var, 0.75 + 0.25 * stored.var((0, 2, 3)), 1e-5, 1e-6)
    assert_close(running_mean, 0.25 * stored.mean((0, 2, 3)), 0, 64 * FP32 * float(stored.abs().max()))


def test_a_large_mean_of_the_output_does_not_cancel() -> None:
    x = activations((1, 64, 17, 17), torch.float32)
    x[:, 0] = 1e4  # one channel that each output adds, so that the mean is 10,000 deviations
    weight = weights(64, 64, torch.float32)
    weight[:, 0] = 1.0
    y, partial = pointwise(x, weight)
    _, invstd = combine(partial, torch.zeros(64), torch.ones(64), 0.1, 0.0)
    assert_close(invstd, y.double().var((0, 2, 3), correction=0).rsqrt(), 1e-3, 0)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, of the interpreter
def test_nan_goes_through_the_prologue() -> None:
    x, weight = activations((1, 64, 3, 3), torch.float16), weights(64, 64, torch.float16)
    x[0, 7, 1, 2] = float("nan")
    before = (torch.zeros(64), torch.ones(64), torch.zeros(64))
    y, partial = pointwise(x, weight, before)
    assert y[0, :, 1, 2].isnan().all()
    assert y.isnan().sum() == 64
    mean, invstd = combine(partial, torch.zeros(64), torch.ones(64), 0.1, 1e-5)
    assert mean.isnan().all()
    assert invstd.isnan().all()
