"""Which stored short sides a config wants of images: enough pixels for what is shown. torch is not imported here."""

from __future__ import annotations

import math

from trainer.recipes.config import Config, DataConfig

Span = tuple[int, int]  # the least and the most short side that is wanted of a stored image


def wanted_pixels(pixels: int) -> float:
    """Of a stored image, or of a crop in it, for what is shown with so many: a copy loses detail near its own limit.

    With no pixel to spare, crops had .87 to .96 of the finest detail that they have from originals, so .92 to .99
    (benchmarks/results/copies.json).
    """
    return pixels * 8 / 7


def wanted_span(data: DataConfig, split: str, pixels: int) -> Span:
    """The least and the most short side that images want which are shown with so many pixels.

    Validation resizes the whole image to them. Without `copy_per_crop` all crops get the copy that serves the largest,
    and validation the one that need not be enlarged.
    """
    wanted = math.ceil(wanted_pixels(pixels))
    if split == "val":
        return (wanted, wanted) if data.copy_per_crop else (pixels, pixels)
    return wanted, math.ceil(wanted_pixels(pixels) / smallest_share(data)) if data.copy_per_crop else wanted


def wanted_spans(config: Config) -> dict[str, frozenset[Span]]:
    """What a run wants of each split, over all its epochs."""
    pixels = {"train": config.resolutions(), "val": frozenset({config.data.val_resize})}
    return {split: frozenset(wanted_span(config.data, split, one) for one in ones) for split, ones in pixels.items()}


def smallest_share(data: DataConfig) -> float:
    """Of an image's short side: the shorter side of the smallest crop."""
    low, high = data.crop_ratio
    return min(1.0, math.sqrt(data.crop_scale[0] * min(low, 1 / high)))
