"""The laptop's recipe. torch is not imported here."""

from __future__ import annotations

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
