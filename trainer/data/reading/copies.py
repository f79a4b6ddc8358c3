"""Which stored copies a resolution needs, and which of them a crop is read from: the smallest with enough pixels.

Every image is stored with several short sides; an original that is smaller stays so in each. No pixel is touched here.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from trainer.data.format import Index
from trainer.data.jpeg import Bytes
from trainer.data.reading.decode import image_size
from trainer.data.reading.order import random_resized_crop
from trainer.data.reading.split import PreparedSplit
from trainer.recipes.config import Config, DataConfig
from trainer.recipes.named import PROMISES
from trainer.recipes.sides import wanted_pixels, wanted_spans

if TYPE_CHECKING:
    from trainer.data.reading.window import Box

LIKELY_SHAPE = 4 / 3  # width over height: of most photographs


def lack_of_pixels(config: Config, index: Index) -> str:
    """A line about images that are enlarged, as this data lacks the copies that the run wants; "" if it has them."""
    own = {"train": config.data.train_sides, "val": (config.data.val_side,)}
    shown = {"train": max(config.resolutions()), "val": config.data.val_resize}
    largest = {split: max(size.short_side for size in index.splits[split].sizes) for split in own}
    needed = {split: max(most for _, most in spans) for split, spans in wanted_spans(config).items()}
    if config.data.copy_per_crop:  # a recipe may store less than its smallest crop wants
        wanted = {split: min(needed[split], max(shown[split], *own[split])) for split in own}
    else:
        wanted = shown
    lacks = [
        f"{name} are stored with {largest[split]} px at most, and {config.recipe} wants {wanted[split]}"
        for split, name in (("train", "training images"), ("val", "validation images"))
        if largest[split] < wanted[split]
    ]
    if not lacks:
        return ""
    sides = {
        split: " ".join(map(str, sorted({*own[split], max(wanted[split], *own[split])}, reverse=True))) for split in own
    }
    than = "than those of the accuracy that the recipe names" if config.recipe in PROMISES else "than they could be"
    return (
        f"{'; '.join(lacks)}: what is smaller is enlarged, so images are less sharp {than}; to have them as sharp, "
        f'prepare the data again: make prepare ARGS="--train-sides {sides["train"]} --val-sides {sides["val"]}"'
    )


def likely_copies(
    copies: Sequence[PreparedSplit], pixels: int, uniform: npt.NDArray[np.float64], data: DataConfig
) -> npt.NDArray[np.int64]:
    """(N,) numbers of the copies that crops are read from, as if all images had one shape. Reads none of them.

    `uniform` are the draws of `random_resized_crop`: (N, 4 x ATTEMPTS).
    """
    if len(copies) == 1:
        return np.zeros(len(uniform), np.int64)
    (least, most), (low, high) = data.crop_scale, np.log(data.crop_ratio)
    attempts = uniform.reshape(len(uniform), -1, 4)
    area, aspect = least + attempts[:, :, 0] * (most - least), np.exp(low + attempts[:, :, 1] * (high - low))
    width, height = np.sqrt(LIKELY_SHAPE * area * aspect), np.sqrt(LIKELY_SHAPE * area / aspect)  # over the short side
    fits = (width <= LIKELY_SHAPE) & (height <= 1)
    first = fits.argmax(1)[:, None]
    shorter = np.take_along_axis(np.where(fits, np.minimum(width, height), 1), first, 1)[:, 0]
    sides = np.array([copy.short_side for copy in copies[:-1]])  # what none of them serves is read from the last
    found: npt.NDArray[np.int64] = np.searchsorted(sides, wanted_pixels(pixels) / shorter)
    return found


def find_crop(
    copies: Sequence[PreparedSplit], likely: int, image: int, pixels: int, uniform: Sequence[float], data: DataConfig
) -> tuple[Bytes, Box]:
    """The JPEG that a crop is read from, and its box there: of the smallest copy that serves it, else of the largest.

    It depends on the draws and the image alone. `likely` is the copy to look at first; if it is the right one, no other
    is touched. ValueError if the bytes are not those of a JPEG.
    """
    jpeg, box, right = _crop_of(copies, likely, image, pixels, uniform, data)
    if right != likely:
        copies[right].prefetch(np.array([image]))
        jpeg, box, _ = _crop_of(copies, right, image, pixels, uniform, data)
    return jpeg, box


def _crop_of(
    copies: Sequence[PreparedSplit], number: int, image: int, pixels: int, uniform: Sequence[float], data: DataConfig
) -> tuple[Bytes, Box, int]:
    """The crop in one of the copies, and the number of the copy that serves it."""
    jpeg = copies[number].jpeg(image)
    size = image_size(jpeg)
    box = random_resized_crop(uniform, *size, data.crop_scale, data.crop_ratio)
    if len(copies) == 1:
        return jpeg, box, number
    side = wanted_pixels(pixels) * min(size) / min(box[2:])
    right = min(bisect_left(copies, side, key=lambda copy: copy.short_side), len(copies) - 1)
    if right > number and min(size) < copies[number].short_side:
        right = number  # the original is that small: larger copies have the same bytes
    return jpeg, box, right
