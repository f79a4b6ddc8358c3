"""What the kernels of `--fused-norm` compute, in Triton's interpreter: `test_kernels.py` runs this file in a process
of its own, with TRITON_INTERPRET=1. References are torch's own, in float64, on the same inputs.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from trainer.learning.batch_counts import take_over_counts
from trainer.learning.fused_norm import Norm, NormReLU, fuse_norms

FP32 = 2.0**-24  # half a step between neighbours, relative: what rounding may change
# bf16: a whole step, since the interpreter cuts off what a GPU rounds.
UNIT = {torch.float32: FP32, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-7}
# Sums of float32 in trees and strips of a few hundred terms lose some bits: this many units of the largest term.
SUMMED = 64 * FP32
RESNET50 = [  # channels and side at 224 px of each BatchNorm, and what follows it
    (64, 112, "relu"), (64, 56, "relu"), (256, 56, "add"), (256, 56, ""), (128, 56, "relu"), (128, 28, "relu"),
    (512, 28, "add"), (512, 28, ""), (256, 28, "relu"), (256, 14, "relu"), (1024, 14, "add"), (1024, 14, ""),
    (512, 14, "relu"), (512, 7, "relu"), (2048, 7, "add"), (2048, 7, ""),
]  # fmt: skip
MOST_VALUES = 64 * 400  # the interpreter is slow: sides shrink until an activation has so many values


@dataclass
class Run:
    """Output, gradients and running statistics of one pass there and back."""

    y: Tensor
    dx: Tensor
    dresidual: Tensor | None
    dweight: Tensor
    dbias: Tensor
    mean: Tensor
    var: Tensor


def activations(shape: tuple[int, ...], dtype: torch.dtype, mean: float = 0.0) -> Tensor:
    return (torch.randn(shape) + mean).to(dtype).contiguous(memory_format=torch.channels_last)


def layer(channels: int) -> nn.BatchNorm2d:
    bn = nn.BatchNorm2d(channels)
    for name in ("weight", "bias", "running_mean", "running_var"):
        tensor = getattr(bn, name)
        nn.init.uniform_(tensor, 0.5, 2) if name == "running_var" else nn.init.normal_(tensor)
    return bn


def fused(bn: nn.BatchNorm2d, x: Tensor, dy: Tensor, residual: Tensor | None, relu: bool) -> Run:
    bn = copy.deepcopy(bn)
    bn.__class__ = NormReLU if relu else Norm
    x = x.clone().requires_grad_()
    residual = None if residual is None else residual.clone().requires_grad_()
    y = bn(x, residual)
    assert y.dtype == x.dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    y.backward(dy)
    return result(bn, y, x, residual)


def exact(bn: nn.BatchNorm2d, x: Tensor, dy: Tensor, residual: Tensor | None, relu: bool) -> Run:
    bn = copy.deepcopy(bn).double()
    x = x.double().requires_grad_()
    residual = None if residual is None else residual.double().requires_grad_()
    y = bn(x) if residual is None else bn(x) + residual
    y = torch.relu(y) if relu else y
    y.backward(dy.double())
    return result(bn, y, x, residual)


def result(bn: nn.BatchNorm2d, y: Tensor, x: Tensor, residual: Tensor | None) -> Run:
    assert bn.weight.grad is not None
    assert bn.bias.grad is not None
    assert x.grad is not None
    assert bn.running_mean is not None
    assert bn.running_var is not None
    dresidual = None if residual is None else residual.grad
    return Run(y.detach(), x.grad, dresidual, bn.weight.grad, bn.bias.grad, bn.running_mean, bn.running_var)


def assert_close(value: Tensor | None, expected: Tensor | None, relative: float, absolute: Tensor | float) -> None:
    assert value is not None
    assert expected is not None
    wrong = (value.double() - expected).abs() > relative * expected.abs() + absolute
    assert not wrong.any(), f"{int(wrong.sum())} of {wrong.numel()} values, of up to {expected.abs().max():.3g}"


def compare(bn: nn.BatchNorm2d, x: Tensor, residual: Tensor | None, relu: bool) -> None:
    """Each value is that of float64, rounded to the type once, with a few roundings of float32 before."""
    unit, dy = 1.01 * UNIT[x.dtype], activations(x.shape, x.dtype)
    new, old = fused(bn, x, dy, residual, relu), exact(bn, x, dy, residual, relu)
    for value, expected in ((new.y, old.y), (new.dx, old.dx)):
        assert_close(value, expected, unit, SUMMED * max(1.0, float(expected.abs().max())))
    if residual is not None:
        assert torch.equal(new.dresidual.double(), old.dresidual)  # type: ignore[union-attr, arg-type]
    terms = dy.double().abs().sum((0, 2, 3))
    assert_close(new.dbias, old.dbias, 0, SUMMED * terms)
    assert_close(new.dweight, old.dweight, 0, SUMMED * terms * 4)  # |xhat| is 4 at most, nearly everywhere
    if bn.training:
        assert new.dweight.dtype == new.dbias.dtype == torch.float32
    assert_close(new.mean, old.mean, SUMMED, SUMMED)
    assert_close(new.var, old.var, SUMMED, SUMMED)


def shrunk(channels: int, side: int) -> tuple[int, int, int, int]:
    """(N, C, H, W) with an odd number of rows, which no tile divides."""
    rows = min(2 * side * side, MOST_VALUES // channels)
    height = min(side, int(rows**0.5)) | 1
    return (1, channels, height, max(3, rows // height) | 1)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(5)


@pytest.mark.parametrize(("channels", "side", "follows"), RESNET50)
def test_each_norm_of_resnet_50_is_that_of_float64_in_bf16(channels: int, side: int, follows: str) -> None:
    x = activations(shrunk(channels, side), torch.bfloat16)
    compare(layer(channels), x, torch.randn_like(x) if follows == "add" else None, bool(follows))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(("channels", "side", "follows"), [RESNET50[0], RESNET50[2], RESNET50[3], RESNET50[9]])
def test_and_in_the_other_types(dtype: torch.dtype, channels: int, side: int, follows: str) -> None:
    x = activations(shrunk(channels, side), dtype)
    compare(layer(channels), x, torch.randn_like(x) if follows == "add" else None, bool(follows))


@pytest.mark.parametrize("follows", ["", "relu", "add"])
def test_the_statistics_of_an_evaluation_are_the_running_ones_and_stay(follows: str) -> None:
    x = activations((2, 100, 5, 3), torch.bfloat16)  # 100: a tile of channels that is not full
    compare(layer(100).eval(), x, torch.randn_like(x) if follows == "add" else None, bool(follows))


@pytest.mark.parametrize("shape", [(2, 24, 1, 1), (1, 8, 1, 3), (3, 100, 1, 11)])
def test_a_few_rows_are_enough(shape: tuple[int, ...]) -> None:
    compare(layer(shape[1]), activations(shape, torch.float32), None, True)


def test_one_row_has_no_variance() -> None:
    with pytest.raises(ValueError, match="expected more than 1 value per channel"):
        layer_of(NormReLU, 8)(activations((1, 8, 1, 1), torch.float32))


def layer_of(kind: type[Norm], channels: int) -> Norm:
    bn = layer(channels)
    bn.__class__ = kind
    assert isinstance(bn, Norm)
    return bn


def test_a_small_variance_around_a_large_mean_is_not_lost() -> None:
    x = activations((4, 64, 15, 15), torch.float32, mean=1e4)
    naive = (x * x).mean((0, 2, 3)) - x.mean((0, 2, 3)) ** 2
    truth = x.double().var((0, 2, 3))
    assert (naive - truth).abs().max() > 1  # in float32 nothing is left of it in E[x^2] - E[x]^2
    bn = layer_of(Norm, 64)
    bn.momentum = 1.0
    y = bn(x)
    assert_close(bn.running_var, truth, 1e-3, 0)
    assert_close(bn.running_mean, x.double().mean((0, 2, 3)), 8 * FP32, 0)
    expected = nn.functional.batch_norm(x.double(), None, None, bn.weight.double(), bn.bias.double(), True)
    assert_close(y, expected, 1e-3, 1e-2)  # float32 tells numbers around 10,000 apart by 0.001


def test_statistics_of_bf16_have_the_accuracy_of_float32() -> None:
    x = activations((4, 64, 13, 13), torch.bfloat16, mean=3.0)
    mean, var = x.double().mean((0, 2, 3)), x.double().var((0, 2, 3))
    bn = layer_of(Norm, 64)
    bn.momentum = 1.0
    bn(x)
    assert_close(bn.running_mean, mean, SUMMED, 0)
    assert_close(bn.running_var, var, SUMMED, 0)
    for rounded, truth in ((mean.bfloat16(), mean), (var.bfloat16(), var)):  # what these bounds would not let pass
        with pytest.raises(AssertionError, match="of 64 values"):
            assert_close(rounded, truth, SUMMED, 0)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, of the interpreter
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("training", [True, False])
def test_what_is_not_finite_is_never_hidden(bad: float, training: bool) -> None:
    """As torch's: where its output, its statistics or its gradients are NaN, these are, and nowhere else."""
    x, dy = activations((2, 16, 3, 3), torch.bfloat16), activations((2, 16, 3, 3), torch.bfloat16)
    residual = torch.randn_like(x)
    x[1, 3, 2, 1] = residual[0, 5, 0, 0] = dy[0, 7, 1, 1] = bad
    bn = layer(16).train(training)
    for other in (None, residual):
        new, old = fused(bn, x, dy, other, True), exact(bn, x, dy, other, True)
        for name in ("y", "dx", "dweight", "dbias", "mean", "var"):
            value, expected = getattr(new, name), getattr(old, name)
            assert torch.equal(value.isnan(), expected.isnan()), name
            assert torch.equal(value.isinf(), expected.isinf()), name


def small_resnet(block: type[BasicBlock | Bottleneck]) -> ResNet:
    """The stem and a block of two stages; or two blocks of the first one, where that has a downsampling, too."""
    is_basic = block is BasicBlock
    model = ResNet(block, [1 if is_basic else 2, 1, 1, 1])
    model.layer3 = model.layer4 = nn.Identity()
    if not is_basic:
        model.layer2 = nn.Identity()
    model.fc = nn.Linear(128 if is_basic else 256, 4)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return model


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_a_whole_resnet_is_as_close_to_float64_as_the_unfused_one(block: type[BasicBlock | Bottleneck]) -> None:
    plain = small_resnet(block)
    exactly, new = copy.deepcopy(plain).double(), copy.deepcopy(plain)
    take_over_counts(new)
    fuse_norms(new)
    assert new.state_dict().keys() == plain.state_dict().keys()
    images, labels = activations((4, 3, 32, 32), torch.float32), torch.tensor([0, 1, 2, 3])
    for part in (slice(0, 2), slice(2, 4)):  # gradients add up over two micro-batches
        for net in (exactly, plain, new):
            inputs = images[part].to(net.fc.weight.dtype)
            nn.functional.cross_entropy(net(inputs), labels[part]).backward()
    truths = dict(exactly.named_parameters())
    for (name, one), other in zip(new.named_parameters(), plain.parameters(), strict=True):
        truth = truths[name].grad
        assert one.grad is not None
        assert other.grad is not None
        assert truth is not None
        assert (one.grad - truth).norm() <= 4 * (other.grad - truth).norm() + FP32 * truth.norm(), name
    for name, buffer in exactly.named_buffers():
        if not name.endswith("num_batches_tracked"):
            assert_close(new.get_buffer(name), buffer, 1e-5, 1e-5)
    with torch.inference_mode():
        assert_close(new.eval()(images), exactly.eval()(images.double()), 1e-4, 1e-4)
