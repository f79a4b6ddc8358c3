"""Recipes that start from torchvision's weights: the brief's, one that keeps what they have, one for anybody's images.

torch is not imported here.
"""

from __future__ import annotations

from trainer.recipes.config import AverageConfig, Config, DataConfig, ModelConfig, OptimConfig, RegularizeConfig


def finetune() -> Config:
    """ResNet-50 from torchvision's V2 weights, 30 epochs of OneCycle at a peak learning rate of 0.002.

    Batch 128 x 4 accumulation steps, 224 px: 30 epochs cost 30.0 of 224 px. Not yet measured. Nearest public run:
    torchvision's own V2 weights, 80.858 % top-1 at resize 232 (torchvision's model page). `finetune-v2` keeps more of
    what they were trained with. V1: `--model.weights IMAGENET1K_V1`.
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


def finetune_v2() -> Config:
    """ResNet-50 from torchvision's V2 weights, trained on as they were, so that it does not fall below 80.858 % top-1.

    That is where it starts, and nobody has measured where it ends. What the weights were trained with stays: 176 px,
    TrivialAugment, mixup, CutMix, erasing, smoothing 0.1, a decay of 2e-5 that leaves the norms alone, an average.
    Batch 128 x 4 and OneCycle with its peak at 0.002 are those of `finetune`. 30 epochs cost 18.5 of 224 px.
    """
    return Config(
        recipe="finetune-v2",
        epochs=30,
        global_batch_size=512,
        device_batch_size=128,
        device="cuda",
        compile=True,
        model=ModelConfig(num_classes=0, weights="IMAGENET1K_V2"),
        data=DataConfig(resolution=176, start_resolution=176, train_sides=(480, 256, 128), copy_per_crop=True),
        optim=OptimConfig(
            peak_lr=0.002, weight_decay=2e-5, decayed="not_norms", div=25.0, final_div=1e4, pct_start=0.3, anneal="cos"
        ),
        average=AverageConfig(half_life_steps=1250.0),
        regularize=RegularizeConfig(
            label_smoothing=0.1, mixup_alpha=0.2, cutmix_alpha=1.0, augment="trivial", interpolation="bilinear",
            erasing_probability=0.1,
        ),
    )  # fmt: skip


def folder() -> Config:
    """ResNet-50 from torchvision's V2 weights on your own images. DATA=folder is all it needs; no % is promised.

    The head has as many outputs as there are classes, and learns 10 times as fast as the rest. 30 epochs of OneCycle,
    batch 64, 224 px: `--size 160` scales all sizes, 64 to 384 px. From scratch: `--model.weights "" --optim.peak-lr 0.1
    --optim.head-lr-multiplier 1 --epochs 90`. Other weights: `--model.weights FILE`. Rare classes: `--data.sampling
    balanced`. Few images: `--optim.freeze-stages 3`. The peak of 0.01 is for a batch of 64; double both together.
    """
    return Config(
        recipe="folder",
        epochs=30,
        global_batch_size=64,
        device_batch_size=64,
        model=ModelConfig(num_classes=0, weights="IMAGENET1K_V2"),
        data=DataConfig(crop_scale=(0.25, 1.0), train_sides=(480, 256), copy_per_crop=True),
        optim=OptimConfig(peak_lr=0.01, weight_decay=1e-4, head_lr_multiplier=10.0),
        regularize=RegularizeConfig(
            label_smoothing=0.1, augment="trivial", interpolation="bilinear", ema_decay=0.99,
        ),
    )  # fmt: skip
