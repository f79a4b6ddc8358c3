"""`--model.blur-pool`: what is computed, against FFCV's and Composer's formulas and timm's layer; names stay."""

from __future__ import annotations

import copy
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
import torchvision
from timm.layers.blur_pool import BlurPool2d
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from trainer.learning.blur_pool import BlurredConv, BlurredMaxPool, blur, blur_pools
from trainer.learning.model import build_model
from trainer.recipes.config import ModelConfig

Which = Literal["convs", "all"]
EXACT: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}


def depthwise(x: Tensor, stride: int = 1) -> Tensor:
    """The formula of both: 1 2 1, 2 4 2, 1 2 1 over 16 for each channel, with zeros around."""
    kernel = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]], dtype=x.dtype, device=x.device) / 16
    return F.conv2d(x, kernel.expand(x.shape[1], 1, 3, 3), stride=stride, padding=1, groups=x.shape[1])


class ReferenceConv(nn.Module):
    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(depthwise(x))
        return y


class ReferenceMaxPool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return depthwise(F.max_pool2d(x, 3, stride=1, padding=1), 2)


def with_reference(model: nn.Module, which: str) -> nn.Module:
    """The model with modules in place of others, as FFCV (use_blurpool) and Composer (BlurPool) exchange them."""
    for name, child in model.named_children():
        if isinstance(child, nn.Conv2d) and max(child.stride) > 1 and child.in_channels >= 16:
            setattr(model, name, ReferenceConv(child))
        elif isinstance(child, nn.MaxPool2d) and which == "all":
            setattr(model, name, ReferenceMaxPool())
        else:
            with_reference(child, which)
    return model


def images(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [7, 8])
def test_a_blur_is_timms_layer_and_the_formula(side: int, stride: int) -> None:
    x = images(2, 3, side, side + 3)
    layer = BlurPool2d(3, filt_size=3, stride=stride, pad_mode="constant").double()
    torch.testing.assert_close(blur(x, stride), layer(x), **EXACT)
    torch.testing.assert_close(blur(x, stride), depthwise(x, stride), **EXACT)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradients_of_a_blur_are_the_formulas_in_the_memory_format_of_its_input(
    stride: int, memory_format: torch.memory_format
) -> None:
    x = images(2, 3, 7, 8).to(memory_format=memory_format).requires_grad_()
    y, expected = blur(x, stride), depthwise(x, stride)
    weights = images(*y.shape)
    (gradient,) = torch.autograd.grad(y, x, weights)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, x, weights)[0], **EXACT)
    assert y.is_contiguous(memory_format=memory_format)
    assert gradient.is_contiguous(memory_format=memory_format)


def test_a_blur_in_bf16_is_off_by_a_step_of_bf16_at_most() -> None:
    x = images(2, 4, 9, 9, dtype=torch.bfloat16)
    exact = depthwise(x.double())
    assert ((blur(x).double() - exact).abs() <= 2.0**-7 * depthwise(x.double().abs())).all()


@pytest.mark.parametrize("which", ["convs", "all"])
def test_outputs_and_gradients_of_a_block_behind_a_pooling_are_the_references(which: Which) -> None:
    torch.manual_seed(3)
    shortcut = nn.Sequential(nn.Conv2d(32, 64, 1, 2, bias=False), nn.BatchNorm2d(64))
    block = Bottleneck(32, 16, stride=2, downsample=shortcut)
    model = nn.Sequential(nn.Conv2d(3, 32, 7, 2, 3), nn.MaxPool2d(3, 2, 1), block).double()
    reference = with_reference(copy.deepcopy(model), which)
    blur_pools(model, which)
    x = images(3, 3, 34, 34)
    found, expected = model(x), reference(x)
    torch.testing.assert_close(found, expected, **EXACT)
    found.square().sum().backward()
    expected.square().sum().backward()
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-9)


def changed(which: Which, name: str = "resnet50") -> dict[str, type]:
    with torch.device("meta"):
        model = torchvision.models.get_model(name)
    keys = [*model.state_dict()]
    blur_pools(model, which)
    assert [*model.state_dict()] == keys
    return {name: type(m) for name, m in model.named_modules() if isinstance(m, BlurredConv | BlurredMaxPool)}


def test_what_shrinks_an_activation_is_blurred_and_names_stay() -> None:
    places = {"layer2.0.conv2", "layer3.0.conv2", "layer4.0.conv2"} | {f"layer{i}.0.downsample.0" for i in (2, 3, 4)}
    assert changed("convs") == dict.fromkeys(places, BlurredConv)
    assert changed("all") == dict.fromkeys(places, BlurredConv) | {"maxpool": BlurredMaxPool}
    places = {f"layer{i}.0.{conv}" for i in (2, 3, 4) for conv in ("conv1", "downsample.0")}
    assert changed("convs", "resnet18") == dict.fromkeys(places, BlurredConv)


def test_blurred_layers_compile_whole_with_the_same_numbers() -> None:
    layers = nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.Conv2d(16, 4, 3, 2, 1), nn.Identity()).double()
    blur_pools(layers, "all")
    compiled = torch.compile(layers, backend="aot_eager", fullgraph=True)
    x = images(2, 16, 12, 12).requires_grad_()
    torch.testing.assert_close(compiled(x), layers(x), **EXACT)
    gradients = [torch.autograd.grad(run(x).square().sum(), x)[0] for run in (compiled, layers)]
    torch.testing.assert_close(*gradients, **EXACT)


def test_a_model_has_it_by_the_config_and_the_same_random_start() -> None:
    built = {}
    for which in ("none", "all"):
        torch.manual_seed(0)
        built[which] = build_model(ModelConfig(name="resnet18", num_classes=4, blur_pool=which, blocked_stem=True))
    kinds = {which: sum(isinstance(m, BlurredConv) for m in model.modules()) for which, model in built.items()}
    assert kinds == {"none": 0, "all": 6}
    assert type(built["all"].maxpool) is BlurredMaxPool
    for name, tensor in built["none"].state_dict().items():
        assert torch.equal(built["all"].state_dict()[name], tensor), name
