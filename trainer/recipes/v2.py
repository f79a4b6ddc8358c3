"""torchvision's recipe of its V2 weights, and two shorter forms of it. torch is not imported here.

Facts: pytorch/vision issue 3995 and pull request 5084 (each image four times in a batch: 80.674 became 80.858 %),
`references/classification/train.py`.
"""

from __future__ import annotations

import math

from trainer.recipes.config import (
    AverageConfig,
    Config,
    DataConfig,
    ModelConfig,
    OptimConfig,
    RegularizeConfig,
    ScheduleConfig,
)
from trainer.recipes.promise import Promise

EMA_EVERY_STEPS = 32
V2 = Promise(
    top1=80.858, pixels=224, source="torchvision ResNet50_Weights.IMAGENET1K_V2",
    note="of the averaged weights, which move 39 times in an epoch, there 40",
)  # fmt: skip


def v2() -> Config:
    """ResNet-50 from scratch, torchvision's recipe of its V2 weights, 600 epochs: 80.858 % top-1 at 224 px.

    Source: torchvision's model page and pytorch/vision#3995, #5084. 600 epochs of 176 px cost 370.4 of 224 px. Batch
    1024; SGD at 0.5, so 0.125 for 256 images; five epochs of warm-up, then a cosine that stays the same in an epoch.
    TrivialAugment, mixup 0.2, CutMix 1, erasing 0.1, smoothing 0.1, each image four times in a batch, an average,
    which is what was scored. `v2-90` and `v2-300` are shorter. This project has not measured it.
    """
    return shortened("v2", 600)


def v2_300() -> Config:
    """ResNet-50 from scratch, half of torchvision's V2 recipe, 300 epochs. Nobody has published its % top-1.

    As `v2`, with a shorter cosine and average. 300 epochs of 176 px cost 185.2 of 224 px. Batch 1024 at 0.5. This
    project has not measured it.
    """
    return shortened("v2-300", 300)


def v2_90() -> Config:
    """ResNet-50 from scratch, torchvision's V2 recipe in 90 epochs. Nobody has published its % top-1.

    As `v2`, with a shorter cosine and average. 90 epochs of 176 px cost 55.6 of 224 px. Batch 1024 at 0.5. So much
    augmentation is made for long runs. This project has not measured it.
    """
    return shortened("v2-90", 90)


def shortened(name: str, epochs: int) -> Config:
    """torchvision's settings, with a cosine and an average for this many epochs."""
    return Config(
        recipe=name,
        epochs=epochs,
        global_batch_size=1024,
        device_batch_size=128,
        device="cuda",
        compile=True,
        model=ModelConfig(num_classes=0),
        data=DataConfig(
            resolution=176, start_resolution=176, train_sides=(480, 256, 128), copy_per_crop=True, repeats=4,
        ),
        optim=OptimConfig(peak_lr=0.5, weight_decay=2e-5, decayed="not_norms"),
        schedule=ScheduleConfig(kind="cosine", warmup_epochs=5.0, warmup_start=0.01, by_epoch=True),
        average=AverageConfig(
            half_life_steps=half_life(epochs), every_steps=EMA_EVERY_STEPS, start_epoch=5.0, warms_up=False
        ),
        regularize=RegularizeConfig(
            label_smoothing=0.1, mixup_alpha=0.2, cutmix_alpha=1.0, augment="trivial", interpolation="bilinear",
            erasing_probability=0.1,
        ),
    )  # fmt: skip


def half_life(epochs: int, batch: int = 1024) -> float:
    """Steps after which a weight counts half in torchvision's average: the same share of a run of any length.

    Its script moves the average by 2e-5 x batch x steps between moves / epochs.
    """
    moves_by = 2e-5 * batch * EMA_EVERY_STEPS / epochs
    return EMA_EVERY_STEPS * math.log(0.5) / math.log1p(-moves_by)
