"""Other random starts of a ResNet than torchvision's."""

from __future__ import annotations

import math

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck


def start_as_composer(model: nn.Module) -> None:
    """Draw the weights anew as mosaicml/composer's example for ResNets does (train_resnet_imagenet1k.py), in place.

    Convolutions and the classifier: normal numbers by He's rule for their inputs. BatchNorm: weights of 0 to 1. The
    classifier's biases are -log(classes), so that with a binary loss each class begins with its share. With
    cross-entropy Composer leaves torch's small random biases, and equal ones change nothing.
    """

    def draw(module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.Linear):
            nn.init.constant_(module.bias, -math.log(module.out_features))
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight)
            nn.init.zeros_(module.bias)

    model.apply(draw)


def zero_last_norms(model: nn.Module) -> None:
    """Let each residual block begin as the identity, in place: the weights of its last BatchNorm are zeros."""
    for block in model.modules():
        if isinstance(block, Bottleneck):
            nn.init.zeros_(block.bn3.weight)
        elif isinstance(block, BasicBlock):
            nn.init.zeros_(block.bn2.weight)
