"""Small networks, and gradients for them."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock


def small_model(seed: int = 0) -> nn.Module:
    """A stem, one block of torchvision's ResNet with its shortcut, and a head."""
    torch.manual_seed(seed)
    shortcut = nn.Sequential(nn.Conv2d(8, 16, 1, 2, bias=False), nn.BatchNorm2d(16))
    layers = OrderedDict(
        conv1=nn.Conv2d(3, 8, 3, 2, bias=False), bn1=nn.BatchNorm2d(8), relu=nn.ReLU(),
        layer1=BasicBlock(8, 16, 2, shortcut), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=nn.Linear(16, 4),
    )  # fmt: skip
    return nn.Sequential(layers).to(memory_format=torch.channels_last)


def backward(model: nn.Module, seed: int) -> None:
    """Gradients of four random images."""
    rng = torch.Generator().manual_seed(seed)
    images = torch.randn(4, 3, 32, 32, generator=rng).contiguous(memory_format=torch.channels_last)
    nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 2, 3])).backward()
