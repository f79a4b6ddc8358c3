"""Named runs: functions that return a frozen config. Each docstring promises a result.

A promise names its source. A figure that this project has not measured says whose it is. torch is not imported here, so
that `--help` and a mistyped option answer at once.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

from trainer.recipes.config import Config, DataConfig, ModelConfig, OptimConfig, RegularizeConfig


def digits() -> Config:
    """ResNet-18 on the 1,797 handwritten digits that ship with scikit-learn: over 98 % top-1 in about a minute.

    The laptop's end-to-end run: same preparation, loader, loop, checkpoints and report as ImageNet.
    """
    return Config(
        recipe="digits",
        epochs=8,
        global_batch_size=32,
        device_batch_size=32,
        precision="fp32",
        log_every_steps=22,
        model=ModelConfig(name="resnet18", num_classes=0),
        data=DataConfig(
            resolution=32, start_resolution=32, val_resize=32, val_crop=32,
            crop_scale=(0.7, 1.0), flip_probability=0.0,
            mean=(0.3, 0.3, 0.3), std=(0.35, 0.35, 0.35), train_sides=(32,), val_side=32, quality=95, workers=2,
        ),
        optim=OptimConfig(peak_lr=0.02, weight_decay=5e-4),
        regularize=RegularizeConfig(label_smoothing=0.05, ema_decay=0.97),
    )  # fmt: skip


def finetune() -> Config:
    """ResNet-50 from torchvision's V2 weights, 30 epochs of OneCycle at a peak learning rate of 0.002.

    Batch 128 x 4 accumulation steps, 224 px. Not yet measured. Nearest public run: torchvision's own V2 weights,
    80.858 % top-1 at resize 232 (torchvision's model page). V1: `--model.weights IMAGENET1K_V1`.
    """
    return Config(
        recipe="finetune",
        epochs=30,
        global_batch_size=512,
        device_batch_size=128,
        device="cuda",
        model=ModelConfig(num_classes=0, weights="IMAGENET1K_V2"),
        optim=OptimConfig(peak_lr=0.002, weight_decay=1e-4, div=25.0, final_div=1e4, pct_start=0.3, anneal="cos"),
        regularize=RegularizeConfig(label_smoothing=0.1),
    )


RECIPES: MappingProxyType[str, Callable[[], Config]] = MappingProxyType({"digits": digits, "finetune": finetune})
DEFAULT_DATA = MappingProxyType({"digits": "digits"})


def default_data(recipe: str) -> str:
    """The data of a recipe when TRAINER_DATA is not set."""
    return DEFAULT_DATA.get(recipe, "ILSVRC/imagenet-1k")
