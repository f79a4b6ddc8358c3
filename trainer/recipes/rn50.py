"""FFCV's recipes: SGD in a triangle, 160 to 192 px, blurred convolutions. torch is not imported here.

Facts: libffcv/ffcv-imagenet, `rn50_configs/`, `train_imagenet.py`. The decay spares what has `bn` in its name, so it
takes the norms of the shortcuts, there and here.
"""

from __future__ import annotations

from trainer.recipes.config import Config, DataConfig, ModelConfig, OptimConfig, RegularizeConfig, ScheduleConfig
from trainer.recipes.promise import Promise

FLIPS = "the source averages each image with its mirror image, and this project does not"
RN50_16 = Promise(top1=73.76, pixels=256, source="libffcv/ffcv-imagenet rn50_16_epochs, its log", note=FLIPS)
RN50_32 = Promise(top1=76.59, pixels=256, source="libffcv/ffcv-imagenet rn50_32_epochs, its log", note=FLIPS)
RN50_88 = Promise(top1=78.43, pixels=256, source="libffcv/ffcv-imagenet rn50_88_epochs, its log", note=FLIPS)


def rn50_16() -> Config:
    """ResNet-50 from scratch in FFCV's 16 epochs: 73.76 % top-1 at 256 px.

    Source: libffcv/ffcv-imagenet, rn50_16_epochs.yaml and its log, which averages each image with its mirror image.
    16 epochs of 160 to 192 px cost 9.1 of 224 px. Batch 4096; the learning rate rises to 1.7 in two epochs and falls
    along a line: 0.106 for 256 images. This project has not measured it.
    """
    return triangle("rn50-16", epochs=16, ramp=(11.0, 13.0))


def rn50_32() -> Config:
    """ResNet-50 from scratch in FFCV's 32 epochs: 76.59 % top-1 at 256 px.

    Source: libffcv/ffcv-imagenet, rn50_32_epochs.yaml and its log, which averages each image with its mirror image.
    32 epochs of 160 to 192 px cost 17.9 of 224 px. Batch 4096; the learning rate rises to 1.7 in two epochs and falls
    along a line: 0.106 for 256 images. This project has not measured it.
    """
    return triangle("rn50-32", epochs=32, ramp=(23.0, 27.0))


def rn50_88() -> Config:
    """ResNet-50 from scratch in FFCV's 88 epochs: 78.43 % top-1 at 256 px.

    Source: libffcv/ffcv-imagenet, rn50_88_epochs.yaml and its log, which averages each image with its mirror image.
    88 epochs of 160 to 192 px cost 48.7 of 224 px. Batch 4096; the learning rate rises to 1.7 in two epochs and falls
    along a line: 0.106 for 256 images. This project has not measured it.
    """
    return triangle("rn50-88", epochs=88, ramp=(65.0, 76.0))


def triangle(name: str, *, epochs: int, ramp: tuple[float, float]) -> Config:
    """FFCV's settings, which are the same for every number of epochs."""
    return Config(
        recipe=name,
        epochs=epochs,
        global_batch_size=4096,
        device_batch_size=256,
        device="cuda",
        compile=True,
        model=ModelConfig(num_classes=0, blur_pool="convs"),
        data=DataConfig(
            resolution=192, start_resolution=160, ramp_start_epoch=ramp[0], ramp_end_epoch=ramp[1],
            val_resize=293, val_crop=256,  # the centre 7/8 of the short side, shown at 256 px
            train_sides=(480, 256, 128), val_side=480, copy_per_crop=True,
        ),
        optim=OptimConfig(peak_lr=1.7, weight_decay=1e-4, decayed="not_bn"),
        schedule=ScheduleConfig(kind="linear", warmup_epochs=2.0, warmup_start=1e-4),
        regularize=RegularizeConfig(label_smoothing=0.1),
    )  # fmt: skip
