"""`--model.init` and `--model.zero-init`: Composer's random start, and blocks that begin as the identity."""

from __future__ import annotations

import math
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from trainer.learning.model import build_model
from trainer.recipes.config import ModelConfig


def composers(module: nn.Module) -> None:
    """The formula of train_resnet_imagenet1k.py, with its binary loss."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        torch.nn.init.kaiming_normal_(module.weight)
    if isinstance(module, nn.BatchNorm2d):
        module.weight.data = torch.rand(module.weight.data.shape)
        module.bias.data = torch.zeros_like(module.bias.data)
    if isinstance(module, nn.Linear):
        module.bias.data = torch.ones(module.bias.shape) * -torch.log(torch.tensor(module.bias.shape[0]))


def test_composers_start_is_drawn_by_its_formula_number_by_number() -> None:
    torch.manual_seed(7)
    reference = torchvision.models.resnet18(num_classes=6)
    reference.apply(composers)
    torch.manual_seed(7)
    model: Any = build_model(ModelConfig(name="resnet18", num_classes=6, init="composer"))
    for (name, found), expected in zip(model.state_dict().items(), reference.state_dict().values(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0, msg=name)
    assert model.fc.bias[0].item() == -torch.tensor(math.log(6)).item()
    assert model.conv1.weight.std().item() == pytest.approx(math.sqrt(2 / (3 * 7 * 7)), rel=0.03)


def test_with_zero_init_each_block_is_the_identity_at_first_and_the_rest_stays() -> None:
    for name, last in (("resnet18", "bn2"), ("resnet50", "bn3")):
        built = {}
        for zero in (False, True):
            torch.manual_seed(1)
            built[zero] = build_model(ModelConfig(name=name, num_classes=6, zero_init=zero)).state_dict()
        zeros = {key for key, tensor in built[True].items() if not torch.equal(tensor, built[False][key])}
        blocks = {key for key in built[True] if key.endswith(f"{last}.weight")}
        assert zeros == blocks
        assert not any(built[True][key].any() for key in blocks)
        if name == "resnet18":
            theirs = timm.create_model(name, zero_init_last=True, num_classes=6).state_dict()
            assert {key for key in blocks if not theirs[key].any()} == blocks


def test_both_go_together() -> None:
    model: Any = build_model(ModelConfig(name="resnet18", num_classes=6, init="composer", zero_init=True))
    assert not model.layer4[1].bn2.weight.any()
    assert model.layer4[1].bn1.weight.std() > 0.2


def test_a_run_that_is_restored_draws_no_start_for_nothing() -> None:
    for initialise in (False, True):
        torch.manual_seed(1)
        model: Any = build_model(ModelConfig(name="resnet18", num_classes=6, zero_init=True), initialise=initialise)
        assert bool(model.layer1[0].bn2.weight.any()) is not initialise
