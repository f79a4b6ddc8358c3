"""JPEG bytes to uint8 pixels with Pillow: torchvision's own crops and antialiased resizing. EXIF is ignored."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from trainer.data.sampling import random_resized_crop


def open_rgb(jpeg: bytes | memoryview) -> Image.Image:
    """An RGB image. Raises OSError or SyntaxError on broken bytes."""
    return Image.open(io.BytesIO(jpeg)).convert("RGB")


def crop_into(
    out: np.ndarray,
    jpeg: bytes | memoryview,
    rng: np.random.Generator,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> None:
    """Write a random resized crop into out: (pixels, pixels, 3) uint8."""
    image = open_rgb(jpeg)
    left, top, width, height = random_resized_crop(rng, image.width, image.height, scale, ratio)
    box = (left, top, left + width, top + height)
    # crop before resize, as torchvision does: pixels outside the box do not bleed in
    out[:] = np.asarray(image.crop(box).resize((out.shape[1], out.shape[0]), Image.Resampling.BILINEAR))


def center_into(out: np.ndarray, jpeg: bytes | memoryview, resize: int) -> None:
    """Resize the short side, then write the centre crop into out: (pixels, pixels, 3) uint8."""
    image = open_rgb(jpeg)
    short, pixels = min(image.size), out.shape[0]
    width, height = (int(resize * side / short) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - pixels) / 2), round((height - pixels) / 2)
    out[:] = np.asarray(image.crop((left, top, left + pixels, top + pixels)))
