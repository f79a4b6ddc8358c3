"""`--size`: the sizes of a recipe, all of them in proportion. torch is not imported here."""

from __future__ import annotations

from dataclasses import replace

from trainer.contract import UserError
from trainer.recipes.config import Config

SMALLEST, LARGEST = 32, 2048  # pixels


def scaled(config: Config, size: int) -> Config:
    """The config with a final training resolution of `size` pixels, and every other size in proportion to it.

    A smaller start of training stays a multiple of `data.resolution_multiple`, of 32 pixels at least. Validation crops
    stay even. Raises UserError for a size that no network takes.
    """
    if not SMALLEST <= size <= LARGEST:
        raise UserError(f"--size is {size}: it must be {SMALLEST} to {LARGEST} pixels; pass another value for --size")
    data = config.data
    share = size / data.resolution
    start = max(SMALLEST, to_multiple(data.start_resolution * share, data.resolution_multiple))
    val_crop = to_multiple(data.val_crop * share, 2)
    return replace(
        config,
        data=replace(
            data,
            resolution=size,
            start_resolution=size if data.start_resolution == data.resolution else start,
            val_crop=val_crop,
            val_resize=max(val_crop, round(data.val_resize * share)),
            train_sides=tuple(round(side * share) for side in data.train_sides),
            val_side=round(data.val_side * share),
        ),
    )


def to_multiple(pixels: float, multiple: int) -> int:
    return round(pixels / multiple) * multiple
