"""The table of networks says what torchvision says, and what a network cannot do is found on the command line."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import get_model, get_model_weights

from tests.trainer.recipes.test_config import with_value
from trainer.contract import UserError
from trainer.recipes.command_line import command_line
from trainer.recipes.config import Config, DataConfig, ModelConfig, OptimConfig
from trainer.recipes.networks import NETWORKS, advice, has_skipped_blocks, is_resnet
from trainer.recipes.rules import checked


def config_of(name: str, pixels: int = 224) -> Config:
    data = DataConfig(resolution=pixels, start_resolution=pixels, val_resize=max(232, pixels), val_crop=pixels)
    return Config(model=ModelConfig(name=name), data=data)


def without_memory(name: str, num_classes: int = 7, **options: object) -> nn.Module:
    with torch.device("meta"):
        made: nn.Module = get_model(name, weights=None, num_classes=num_classes, **options)
    return made


def test_the_table_has_every_classification_model_of_torchvision_and_no_other() -> None:
    assert list(NETWORKS) == torchvision.models.list_models(module=torchvision.models)


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_work_and_usual_size_are_those_that_torchvision_gives(name: str) -> None:
    network, known = NETWORKS[name], list(get_model_weights(name))
    plain = [weights for weights in known if weights.name in ("IMAGENET1K_V1", "IMAGENET1K_V2")]
    assert network.weights == tuple(weights.name for weights in plain)
    at_224 = [weights.meta["_ops"] for weights in known if weights.transforms.keywords["crop_size"] == 224]
    assert all(network.gmacs == pytest.approx(work, abs=1e-3) for work in at_224)
    assert at_224 or network.tested != 224 or network.refused
    for weights in plain if not network.refused else []:
        assert weights.transforms.keywords["crop_size"] == network.tested


@pytest.mark.parametrize("name", ["efficientnet_b1", "swin_v2_t"])
def test_where_torchvision_counts_the_work_at_another_size_the_table_has_it_at_224_px(name: str) -> None:
    with FlopCounterMode(display=False) as counted:
        without_memory(name, 1000).eval()(torch.empty(1, 3, 224, 224, device="meta"))
    assert NETWORKS[name].gmacs == pytest.approx(counted.get_total_flops() / 2e9, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "taken", "refused"),
    [("alexnet", 63, 62), ("vit_b_32", 224, 192), ("maxvit_t", 224, 256), ("swin_t", 32, 31), ("resnet18", 45, 31)],
)
def test_the_sizes_that_a_network_takes_are_those_that_the_rules_let_through(
    name: str, taken: int, refused: int
) -> None:
    checked(config_of(name, taken))
    assert without_memory(name)(torch.empty(2, 3, taken, taken, device="meta")).shape == (2, 7)
    with pytest.raises(UserError, match=rf"^--data\.resolution is {refused}: it must be "):
        checked(config_of(name, refused))
    if refused > 32:  # below it is a rule of ours, see pixel_rules
        with pytest.raises((RuntimeError, AssertionError)):
            without_memory(name)(torch.empty(2, 3, refused, refused, device="meta"))


@pytest.mark.parametrize("field", ["resolution", "start_resolution", "val_crop"])
def test_a_network_of_one_size_is_told_so_for_each_size_that_it_would_see(field: str) -> None:
    right = config_of("vit_b_16")
    wrong = replace(right, data=with_value(right.data, field, 160))
    option = f"--data.{field.replace('_', '-')}"
    with pytest.raises(UserError, match=f"^{option} is 160: it must be 224 with --model.name vit_b_16, which takes no"):
        checked(wrong)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_a_network_whose_output_in_training_is_no_tensor_is_refused_with_the_reason(name: str) -> None:
    made = without_memory(name, init_weights=False)
    assert not isinstance(made(torch.empty(2, 3, 299, 299, device="meta")), torch.Tensor)
    with pytest.raises(UserError, match=f"^--model.name is {name}: it must be another network: .*auxiliary outputs"):
        checked(config_of(name, 299))


def test_mistakes_about_a_network_are_found_on_the_command_line() -> None:
    mistakes = {
        ("--model.name", "resnet19"): "'resnet19' is not .*resnet18",
        ("--model.name", "efficientnetb0"): "'efficientnetb0' is not .*use one of efficientnet_b0, resnet101",
        ("--model.name", "vit_b_16"): "--data.resolution is 32: it must be 224",
        ("--model.weights", "IMAGENET1K_V2"): "is IMAGENET1K_V2: .*torchvision has of resnet18 .IMAGENET1K_V1., a file",
        ("--model.name", "vgg11", "--model.stochastic-depth", ".1"): "it must be 0 with --model.name vgg11",
    }
    for options, message in mistakes.items():
        with pytest.raises(UserError, match=message):
            command_line("train", ["digits", *options])


@pytest.mark.parametrize(
    "name", ["resnext50_32x4d", "wide_resnet50_2", "vgg11", "efficientnet_b0", "convnext_tiny", "swin_t", "vit_b_32"]
)
def test_names_tell_the_class_of_a_network(name: str) -> None:
    made = without_memory(name)
    assert is_resnet(name) == isinstance(made, torchvision.models.ResNet)
    skips = any(isinstance(module, torchvision.ops.StochasticDepth) for module in made.modules())
    assert has_skipped_blocks(name) == (skips or is_resnet(name))


def said(config: Config) -> str:
    return "\n".join(advice(config))


def test_what_is_unusual_for_a_network_is_said_and_nothing_about_a_resnet() -> None:
    adamw = OptimConfig(name="adamw", peak_lr=0.001)
    convnext = replace(config_of("convnext_tiny"), global_batch_size=1024)
    assert re.search("usually trained from scratch with adamw at .* 0.001 for 1,024 .* run has sgd", said(convnext))
    assert said(replace(convnext, optim=adamw)) == ""
    assert "has adamw at 0.1 for 1,024" in said(replace(convnext, optim=replace(adamw, peak_lr=0.1)))
    assert "vgg11 is usually trained from scratch with sgd at a peak learning rate of 0.01" in said(config_of("vgg11"))
    assert "usually tested at 380 px, and this run validates at 224 px" in said(config_of("efficientnet_b4"))
    assert said(config_of("efficientnet_b4", 380)) == ""
    assert said(config_of("resnet50")) == said(config_of("resnet50", 96)) == ""
