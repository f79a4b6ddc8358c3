"""timm's shortest recipe of "ResNet strikes back": LAMB, BCE, mixing, RandAugment. torch is not imported here.

Facts: the paper (arXiv 2110.00476, table 2), timm's results-imagenet.csv, timm's defaults: gradients of norm 1 at most
inside LAMB, the last norm of each block starts at zero, the learning rate stays the same in an epoch, the cosine counts
from the first epoch. Starts of 1e-4 and ends of 1e-6 are timm's too.
"""

from __future__ import annotations

from trainer.recipes.config import Config, DataConfig, ModelConfig, OptimConfig, RegularizeConfig, ScheduleConfig
from trainer.recipes.promise import Promise

A3 = Promise(
    top1=78.05, pixels=224, source="timm results-imagenet.csv, resnet50.a3_in1k",
    note="the source trains in fp16, resizes with random filters, and tests with a bicubic one",
)  # fmt: skip


def a3() -> Config:
    """ResNet-50 from scratch, procedure A3 of "ResNet strikes back", 100 epochs: 78.05 % top-1 at 224 px.

    Source: Wightman et al. 2021, and timm's results-imagenet.csv (resnet50.a3_in1k). 100 epochs of 160 px cost 51.0 of
    224 px. Batch 2048; LAMB at 0.008, which is for this batch; five epochs of warm-up, then a cosine. BCE over targets
    above 0.2, mixup 0.1, CutMix 1, RandAugment of magnitude 6. Test: the centre 95 %. This project has not measured it.
    """
    return Config(
        recipe="a3",
        epochs=100,
        global_batch_size=2048,
        device_batch_size=512,
        device="cuda",
        compile=True,
        model=ModelConfig(num_classes=0, zero_init=True),
        data=DataConfig(
            resolution=160, start_resolution=160, val_resize=235, train_sides=(480, 256, 128), copy_per_crop=True,
        ),
        optim=OptimConfig(name="lamb", peak_lr=0.008, eps=1e-6, weight_decay=0.02, clip_norm=1.0),
        schedule=ScheduleConfig(
            kind="cosine", warmup_epochs=5.0, warmup_start=0.0125, warmup_overlaps=True, final_share=1.25e-4,
            by_epoch=True,
        ),
        regularize=RegularizeConfig(
            loss="bce_mean", bce_threshold=0.2, label_smoothing=0.0, mixup_alpha=0.1, cutmix_alpha=1.0,
            augment="timm_rand", interpolation="bilinear", rand_magnitude=6, rand_std=0.5,
        ),
    )  # fmt: skip
