"""The first convolution over blocks of pixels: the same numbers, names and checkpoints as without them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from trainer.contract import UserError
from trainer.learning.evaluation import autocast
from trainer.learning.model import build_model
from trainer.learning.state import make_state
from trainer.learning.stem import block_stem
from trainer.recipes.config import Config, ModelConfig, RegularizeConfig


def pair(
    memory_format: torch.memory_format = torch.channels_last, dtype: torch.dtype = torch.float64
) -> list[nn.Module]:
    """A ResNet's first convolution, plain and over blocks, with the same weights."""
    model = nn.ModuleDict({"conv1": nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)})
    model.to(dtype=dtype, memory_format=memory_format)  # type: ignore[call-overload]
    plain = copy.deepcopy(model)
    block_stem(model, "resnet18")
    return [plain["conv1"], model["conv1"]]


def passes(stem: nn.Module, images: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The outputs, and the gradients of weights and images."""
    images, weight = images.detach().requires_grad_(), stem.get_parameter("weight")
    outputs = stem(images)
    found = torch.autograd.grad(outputs, [weight, images], gradient)
    return outputs.detach(), found[0], found[1]


@pytest.mark.parametrize("size", [(224, 224), (32, 32), (34, 62)])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_outputs_and_gradients_are_those_of_the_plain_convolution(
    size: tuple[int, int], memory_format: torch.memory_format
) -> None:
    rng = torch.Generator().manual_seed(3)
    plain, blocked = pair(memory_format)
    images = torch.randn(2, 3, *size, generator=rng, dtype=torch.float64).to(memory_format=memory_format)
    gradient = torch.randn(2, 64, size[0] // 2, size[1] // 2, generator=rng, dtype=torch.float64)
    wanted, found = (passes(stem, images, gradient.to(memory_format=memory_format)) for stem in (plain, blocked))
    for one, other in zip(wanted, found, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= 1e-12 * one.abs().max()
    assert found[0].is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_in_half_precision_the_output_is_that_and_keeps_channels_last(precision: str) -> None:
    plain, blocked = pair(dtype=torch.float32)
    images = torch.randn(2, 3, 64, 64).to(memory_format=torch.channels_last)
    with autocast(Config(precision=precision), images.device):  # type: ignore[arg-type]
        wanted, found = plain(images), blocked(images)
    assert found.dtype == wanted.dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.02)


def test_checkpoints_and_the_average_are_those_of_a_model_without_blocks() -> None:
    states = [
        make_state(
            Config(model=ModelConfig(name="resnet18", num_classes=4, blocked_stem=blocked), precision="fp32",
                   regularize=RegularizeConfig(ema_decay=0.9)),
            torch.device("cpu"), initialise=True,
        )
        for blocked in (False, True)
    ]  # fmt: skip
    plain, blocked = (state.tensors() for state in states)
    assert list(plain) == list(blocked)
    assert all(torch.equal(tensor, blocked[name]) for name, tensor in plain.items())
    assert all(tensor.stride() == blocked[name].stride() for name, tensor in plain.items())
    images = torch.randn(2, 3, 32, 32)
    for one, other in zip(*(state.models().values() for state in states), strict=True):
        torch.testing.assert_close(one.eval()(images), other.eval()(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "mobilenet_v3_small"])  # 3x3 pixels, and no conv1
def test_a_model_without_such_a_convolution_is_named(name: str) -> None:
    with pytest.raises(UserError, match=f"--model.blocked-stem needs .*7x7.*--model.name '{name}' has none: leave"):
        build_model(ModelConfig(name=name, num_classes=4, blocked_stem=True))
