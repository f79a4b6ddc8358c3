"""`--model.stochastic-depth`: chances as timm's, masks as torchvision's, and random numbers of (seed, step) alone."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops import StochasticDepth

from trainer.learning.model import build_model, draws_numbers
from trainer.learning.stochastic_depth import skip_blocks
from trainer.recipes.config import ModelConfig


def chances(model: nn.Module) -> list[float]:
    return [module.p for module in model.modules() if isinstance(module, StochasticDepth)]


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_chances_rise_with_depth_as_timms(name: str) -> None:
    with torch.device("meta"):
        model, theirs = torchvision.models.get_model(name), timm.create_model(name, drop_path_rate=0.05)
    keys = [*model.state_dict()]
    assert not draws_numbers(model)
    skip_blocks(model, 0.05)
    assert [*model.state_dict()] == keys
    paths = [getattr(block, "drop_path", None) for layer in range(1, 5) for block in getattr(theirs, f"layer{layer}")]
    assert chances(model) == pytest.approx([getattr(path, "drop_prob", 0.0) for path in paths])
    assert chances(model)[-1] == 0.05
    assert draws_numbers(model)


@pytest.mark.parametrize("name", ["convnext_tiny", "efficientnet_b0", "swin_t"])
def test_networks_with_chances_of_their_own_keep_the_form_of_these(name: str) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(name)
    before = chances(model)
    skip_blocks(model, 0.3)
    assert chances(model) == pytest.approx([p / max(before) * 0.3 for p in before])
    assert chances(model)[-1] == 0.3


@pytest.mark.parametrize(("block", "norm", "width"), [(BasicBlock, "bn2", 64), (Bottleneck, "bn3", 4)])
def test_an_image_skips_what_a_block_adds_or_gets_it_whole_as_by_torchvisions_layer(
    block: type, norm: str, width: int
) -> None:
    torch.manual_seed(2)
    plain = ResNet(block, [1, 1, 1, 2], num_classes=5, width_per_group=width)
    model, reference = copy.deepcopy(plain), copy.deepcopy(plain)
    skip_blocks(model, 0.6)
    blocks = [module for module in reference.modules() if isinstance(module, block)]
    for number, module in enumerate(blocks):
        chance = StochasticDepth(0.6 * number / (len(blocks) - 1), "row")
        setattr(module, norm, nn.Sequential(getattr(module, norm), chance))
    images = torch.randn(6, 3, 32, 32)
    outputs = []
    with torch.no_grad():
        for network in (model, reference):
            torch.manual_seed(9)
            outputs.append(network(images))
        assert torch.equal(*outputs)
        assert not torch.equal(outputs[0], plain(images))
        assert torch.equal(model.eval()(images), reference.eval()(images))


def test_a_validation_and_a_copy_of_the_model_skip_nothing_of_each_other() -> None:
    model = build_model(ModelConfig(name="resnet18", num_classes=3, stochastic_depth=0.5))
    average, images = copy.deepcopy(model).eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        scored = average(images)
        assert not torch.equal(model(images), scored)
        assert torch.equal(average(images), scored)
