"""Which of torchvision's networks timm has with the same names, tensors and sums: ResNets and DenseNets.

A test compares each with timm. torch is not imported here.
"""

from __future__ import annotations

from types import MappingProxyType

from trainer.model_card import ModelCard

# torchvision's name -> timm's. No other network of torchvision has the tensors of one of timm's.
TIMM_NAMES = MappingProxyType({
    "densenet121": "densenet121", "densenet161": "densenet161", "densenet169": "densenet169",
    "densenet201": "densenet201", "resnet101": "resnet101", "resnet152": "resnet152", "resnet18": "resnet18",
    "resnet34": "resnet34", "resnet50": "resnet50", "resnext101_32x8d": "resnext101_32x8d",
    "resnext101_64x4d": "resnext101_64x4d", "resnext50_32x4d": "resnext50_32x4d",
    "wide_resnet101_2": "wide_resnet101_2", "wide_resnet50_2": "wide_resnet50_2",
})  # fmt: skip


def why_not_torchvision(card: ModelCard) -> str:
    """Why torchvision's network of the same name computes something else with these weights; "" where it does not."""
    if card.blur_pool == "none":
        return ""
    return (
        f"trained with --model.blur-pool {card.blur_pool}: a plain {card.network} loads these weights, and computes "
        "something else; the forms program and onnx hold the blur"
    )


def why_not_timm(card: ModelCard) -> str:
    """Why timm has no network for these weights; "" where it has."""
    if card.network not in TIMM_NAMES:
        return f"timm has no network with the tensors of torchvision's {card.network}"
    return why_not_torchvision(card)
