"""`--size` and `--epochs`: what follows them in a recipe, in proportion. torch is not imported here."""

from __future__ import annotations

from dataclasses import replace

from trainer.contract import UserError
from trainer.recipes.config import Config

SMALLEST, LARGEST = 32, 2048  # pixels


def scaled(config: Config, size: int) -> Config:
    """The config with a final training resolution of `size` pixels, and every other size in proportion to it.

    A smaller start of training becomes a multiple of `data.resolution_multiple`, of 32 pixels at least, and is rounded
    down; stored copies are rounded up, so that each serves what it served. Validation crops stay even. Raises UserError
    for a size that no network takes, or that would need stored copies of more than 2048 pixels.
    """
    data = config.data
    most = LARGEST * data.resolution // max(data.resolution, data.val_crop, data.val_side, *data.train_sides)
    if not SMALLEST <= size <= most:
        raise UserError(
            f"--size is {size}: it must be {SMALLEST} to {most} pixels, since no image of {config.recipe} may have "
            f"more than {LARGEST}, and stored copies have more than what is shown; pass another value for --size"
        )
    share, multiple = size / data.resolution, data.resolution_multiple
    start = min(size, max(SMALLEST, data.start_resolution * size // data.resolution // multiple * multiple))
    val_crop = round(data.val_crop * share / 2) * 2
    val_resize = max(val_crop, round(data.val_resize * share))
    return replace(
        config,
        data=replace(
            data,
            resolution=size,
            start_resolution=size if data.start_resolution == data.resolution else start,
            val_crop=val_crop,
            val_resize=val_resize,
            train_sides=tuple(-(-side * size // data.resolution) for side in data.train_sides),
            val_side=max(val_resize, -(-data.val_side * size // data.resolution)),
        ),
    )


def lasting(config: Config, epochs: int) -> Config:
    """The config with so many epochs, and its ramp from small to large images in proportion.

    The last epoch always has images of the final size. Warm-up and averages keep their epochs and steps.
    """
    data = config.data
    if epochs < 1 or epochs == config.epochs or data.start_resolution == data.resolution:
        return replace(config, epochs=epochs)
    if epochs == 1:
        return replace(config, epochs=1, data=replace(data, start_resolution=data.resolution))
    share = epochs / config.epochs
    end = min(round(data.ramp_end_epoch * share, 2), epochs - 1.0)
    start = min(round(data.ramp_start_epoch * share, 2), end)
    return replace(config, epochs=epochs, data=replace(data, ramp_start_epoch=start, ramp_end_epoch=end))
