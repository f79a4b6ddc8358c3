"""Torchvision's classification networks: which sizes they take, which weights there are, and what they usually need.

A mistake about a network is so found on the command line, before any data is touched. torch is not imported here; a
test compares the table with torchvision.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType

from trainer.contract import UserError
from trainer.recipes.config import Config


@dataclass(frozen=True)
class Usual:
    """How torchvision trained a network from scratch (the README of its references/classification)."""

    optimizer: str  # as --optim.name has it, but for RMSprop, which is not there
    peak_lr: float
    batch: int  # for so many images a step

    def __str__(self) -> str:
        return f"{self.optimizer} at a peak learning rate of {self.peak_lr:g} for {self.batch:,} images a step"


@dataclass(frozen=True)
class Traits:
    """Of one network."""

    gmacs: float  # 1e9 multiplications of one image of 224 px, forward
    weights: tuple[str, ...]  # torchvision's of ImageNet, by name
    least: int = 32  # the smallest side in pixels
    only: int = 0  # the only side that it takes; 0 = any from `least` on
    tested: int = 224  # the side in pixels that its accuracy is quoted for
    usual: Usual | None = None  # where SGD as for a ResNet is not the usual choice
    refused: str = ""  # why it cannot be trained here


V1 = ("IMAGENET1K_V1",)
V1_V2 = ("IMAGENET1K_V1", "IMAGENET1K_V2")
NO_NORMS = Usual("sgd", 0.01, 256)
RMSPROP = Usual("rmsprop", 0.064, 1024)
ADAMW = Usual("adamw", 0.001, 1024)
VIT = Usual("adamw", 0.003, 4096)
AUXILIARY = "another network: this one has auxiliary outputs in training, which the losses here do not know"

NETWORKS: MappingProxyType[str, Traits] = MappingProxyType({
    "alexnet": Traits(0.714, V1, least=63, usual=NO_NORMS),
    "convnext_base": Traits(15.355, V1, usual=ADAMW),
    "convnext_large": Traits(34.361, V1, usual=ADAMW),
    "convnext_small": Traits(8.684, V1, usual=ADAMW),
    "convnext_tiny": Traits(4.456, V1, usual=ADAMW),
    "densenet121": Traits(2.834, V1),
    "densenet161": Traits(7.728, V1),
    "densenet169": Traits(3.36, V1),
    "densenet201": Traits(4.291, V1),
    "efficientnet_b0": Traits(0.386, V1),
    "efficientnet_b1": Traits(0.57, V1_V2, tested=240),
    "efficientnet_b2": Traits(0.659, V1, tested=288),
    "efficientnet_b3": Traits(0.963, V1, tested=300),
    "efficientnet_b4": Traits(1.504, V1, tested=380),
    "efficientnet_b5": Traits(2.356, V1, tested=456),
    "efficientnet_b6": Traits(3.36, V1, tested=528),
    "efficientnet_b7": Traits(5.17, V1, tested=600),
    "efficientnet_v2_l": Traits(12.231, V1, tested=480),
    "efficientnet_v2_m": Traits(5.362, V1, tested=480),
    "efficientnet_v2_s": Traits(2.85, V1, tested=384),
    "googlenet": Traits(1.498, V1, refused=AUXILIARY),
    "inception_v3": Traits(2.838, V1, refused=AUXILIARY),
    "maxvit_t": Traits(5.558, V1, only=224, usual=VIT),
    "mnasnet0_5": Traits(0.104, V1),
    "mnasnet0_75": Traits(0.215, V1),
    "mnasnet1_0": Traits(0.314, V1),
    "mnasnet1_3": Traits(0.526, V1),
    "mobilenet_v2": Traits(0.301, V1_V2),
    "mobilenet_v3_large": Traits(0.217, V1_V2, usual=RMSPROP),
    "mobilenet_v3_small": Traits(0.057, V1, usual=RMSPROP),
    "regnet_x_16gf": Traits(15.941, V1_V2),
    "regnet_x_1_6gf": Traits(1.603, V1_V2),
    "regnet_x_32gf": Traits(31.736, V1_V2),
    "regnet_x_3_2gf": Traits(3.177, V1_V2),
    "regnet_x_400mf": Traits(0.414, V1_V2),
    "regnet_x_800mf": Traits(0.8, V1_V2),
    "regnet_x_8gf": Traits(7.995, V1_V2),
    "regnet_y_128gf": Traits(127.518, ()),
    "regnet_y_16gf": Traits(15.912, V1_V2),
    "regnet_y_1_6gf": Traits(1.612, V1_V2),
    "regnet_y_32gf": Traits(32.28, V1_V2),
    "regnet_y_3_2gf": Traits(3.176, V1_V2),
    "regnet_y_400mf": Traits(0.402, V1_V2),
    "regnet_y_800mf": Traits(0.834, V1_V2),
    "regnet_y_8gf": Traits(8.473, V1_V2),
    "resnet101": Traits(7.801, V1_V2),
    "resnet152": Traits(11.514, V1_V2),
    "resnet18": Traits(1.814, V1),
    "resnet34": Traits(3.664, V1),
    "resnet50": Traits(4.089, V1_V2),
    "resnext101_32x8d": Traits(16.414, V1_V2),
    "resnext101_64x4d": Traits(15.46, V1),
    "resnext50_32x4d": Traits(4.23, V1_V2),
    "shufflenet_v2_x0_5": Traits(0.04, V1),
    "shufflenet_v2_x1_0": Traits(0.145, V1),
    "shufflenet_v2_x1_5": Traits(0.296, V1),
    "shufflenet_v2_x2_0": Traits(0.583, V1),
    "squeezenet1_0": Traits(0.819, V1),
    "squeezenet1_1": Traits(0.349, V1),
    "swin_b": Traits(15.431, V1, usual=ADAMW),
    "swin_s": Traits(8.741, V1, usual=ADAMW),
    "swin_t": Traits(4.491, V1, usual=ADAMW),
    "swin_v2_b": Traits(17.048, V1, tested=256, usual=ADAMW),
    "swin_v2_s": Traits(9.695, V1, tested=256, usual=ADAMW),
    "swin_v2_t": Traits(4.938, V1, tested=256, usual=ADAMW),
    "vgg11": Traits(7.609, V1, usual=NO_NORMS),
    "vgg11_bn": Traits(7.609, V1),
    "vgg13": Traits(11.308, V1, usual=NO_NORMS),
    "vgg13_bn": Traits(11.308, V1),
    "vgg16": Traits(15.47, V1, usual=NO_NORMS),
    "vgg16_bn": Traits(15.47, V1),
    "vgg19": Traits(19.632, V1, usual=NO_NORMS),
    "vgg19_bn": Traits(19.632, V1),
    "vit_b_16": Traits(17.564, V1, only=224, usual=VIT),
    "vit_b_32": Traits(4.409, V1, only=224, usual=VIT),
    "vit_h_14": Traits(167.295, (), only=224),
    "vit_l_16": Traits(61.555, V1, only=224),
    "vit_l_32": Traits(15.378, V1, only=224, usual=VIT),
    "wide_resnet101_2": Traits(22.753, V1_V2),
    "wide_resnet50_2": Traits(11.398, V1_V2),
})  # fmt: skip


def network_of(name: str) -> Traits:
    """The row of a network. Raises UserError for an unknown name."""
    if (network := NETWORKS.get(name)) is not None:
        return network
    near = [other for other in get_close_matches(name, NETWORKS, n=1) if not is_resnet(other)]
    near += [other for other in NETWORKS if other.startswith("resnet")]
    raise UserError(f"--model.name {name!r} is not a torchvision classification model: use one of {', '.join(near)}, …")


def is_resnet(name: str) -> bool:
    """Whether torchvision's class `ResNet` makes it: plain, wide, or of the ResNeXt form."""
    return name.startswith(("resnet", "resnext", "wide_resnet"))


def has_skipped_blocks(name: str) -> bool:
    """Whether stochastic depth can skip its blocks."""
    return is_resnet(name) or name.startswith(("convnext", "efficientnet", "maxvit", "swin"))


def advice(config: Config) -> Iterator[str]:
    """What the start of a run says about its network: each line a way in which this run is unusual for it."""
    name, optim, crop = config.model.name, config.optim, config.data.val_crop
    network = network_of(name)
    if (usual := network.usual) is not None:
        times = optim.peak_lr / config.global_batch_size * usual.batch / usual.peak_lr
        if optim.name != usual.optimizer or times > 4:
            yield (
                f"{name} is usually trained from scratch with {usual}; this run has {optim.name} at {optim.peak_lr:g} "
                f"for {config.global_batch_size:,} (--optim.name, --optim.peak-lr)"
            )
    if network.tested != 224 and crop != network.tested:
        yield f"{name} is usually tested at {network.tested} px, and this run validates at {crop} px (--data.val-crop)"
