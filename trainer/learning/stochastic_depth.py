"""`--model.stochastic-depth`: in training, residual blocks are skipped at random, by each image alone (Huang 2016)."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import StochasticDepth


class SkippedBasicBlock(BasicBlock):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        identity = x if self.downsample is None else self.downsample(x)
        y: Tensor = self.relu(self.skip(self.bn2(self.conv2(out))) + identity)
        return y


class SkippedBottleneck(Bottleneck):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))
        identity = x if self.downsample is None else self.downsample(x)
        y: Tensor = self.relu(self.skip(self.bn3(self.conv3(out))) + identity)
        return y


SKIPPED: dict[type[nn.Module], type[nn.Module]] = {BasicBlock: SkippedBasicBlock, Bottleneck: SkippedBottleneck}


def skip_blocks(model: nn.Module, last: float) -> None:
    """Let a torchvision network skip its blocks, in place: the last one with a chance of `last`, above 0.

    The chance grows in proportion to the number of the block: the first one of a ResNet is never skipped. Networks
    that torchvision builds with stochastic depth keep the form of theirs. Names and tensors stay.
    """
    if own := [module for module in model.modules() if isinstance(module, StochasticDepth)]:
        greatest = max(module.p for module in own)
        for module in own:
            module.p *= last / greatest
        return
    blocks = [module for module in model.modules() if type(module) in SKIPPED]
    for number, block in enumerate(blocks):
        block.__class__ = SKIPPED[type(block)]
        block.skip = StochasticDepth(last * number / (len(blocks) - 1), "row")


def skips_blocks(model: nn.Module) -> bool:
    return any(isinstance(module, StochasticDepth) for module in model.modules())
