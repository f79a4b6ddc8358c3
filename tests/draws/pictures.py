"""Tiny pictures in every format that people have, and what Pillow sees in them: the truth about pixels."""

from __future__ import annotations

import io
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

MARGIN = 3.0  # of 255, beyond what encoding costs: other filters shrink otherwise
SIDE = 32  # pixels: the short side of the copies that are made
Pixels = npt.NDArray[np.int16]  # (H, W, 3)


@dataclass(frozen=True)
class Picture:
    data: bytes
    ending: str  # as its file is named


@dataclass(frozen=True)
class Seen:
    """What a prepared copy of a picture must look like."""

    pixels: Pixels
    allowed: float  # of 255: how far the pixels may be away in the mean. 0 of what is stored as it is


def _painted(dice: random.Random) -> Image.Image:
    """Soft colours, others for every picture, so that two pictures are never alike."""
    rng = np.random.default_rng(dice.getrandbits(32))
    short = dice.randint(14, 40)
    size = [short, min(2 * short, short + dice.randint(0, 12))]
    dice.shuffle(size)
    coarse = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
    return coarse.resize((size[0], size[1]), Image.Resampling.BICUBIC)


def _encoded(image: Image.Image, format: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def _with_alpha(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.putalpha(200)
    return image


def _of_16_bits(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


FORMATS: dict[str, tuple[str, Callable[[Image.Image], bytes]]] = {  # name: ending, encoder
    "jpeg": (".JPEG", lambda image: _encoded(image, "JPEG", quality=92)),
    "jpg 4:4:4": (".jpg", lambda image: _encoded(image, "JPEG", quality=92, subsampling=0)),
    "progressive": (".jpeg", lambda image: _encoded(image, "JPEG", quality=92, progressive=True)),
    "grey": (".JPG", lambda image: _encoded(image.convert("L"), "JPEG", quality=92)),
    "cmyk": (".JPEG", lambda image: _encoded(image.convert("CMYK"), "JPEG", quality=92)),
    "png": (".png", lambda image: _encoded(image, "PNG")),
    "png named jpeg": (".JPEG", lambda image: _encoded(image, "PNG")),
    "png alpha": (".PNG", lambda image: _encoded(_with_alpha(image), "PNG")),
    "png 16": (".png", lambda image: _encoded(_of_16_bits(image), "PNG")),
    "png palette": (".png", lambda image: _encoded(image.convert("P", palette=Image.Palette.ADAPTIVE), "PNG")),
    "gif": (".gif", lambda image: _encoded(image, "GIF")),
    "bmp": (".bmp", lambda image: _encoded(image, "BMP")),
    "webp": (".webp", lambda image: _encoded(image, "WEBP", lossless=True)),
    "tiff": (".tif", lambda image: _encoded(image, "TIFF")),
    "ppm": (".ppm", lambda image: _encoded(image, "PPM")),
}
PHOTOGRAPHS = ("jpeg", "jpg 4:4:4", "grey", "progressive")


def paint(dice: random.Random) -> Picture:
    """A new picture; most are JPEGs."""
    format = dice.choice(PHOTOGRAPHS) if dice.random() < 0.6 else dice.choice([*FORMATS])
    ending, encode = FORMATS[format]
    return Picture(encode(_painted(dice)), ending)


@lru_cache(4096)
def seen(data: bytes) -> Seen | None:
    """What Pillow sees, as large as the copy has to be. None of what it cannot open."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data))
            image.load()
    except Exception:  # noqa: BLE001  # it raises all kinds on bad bytes
        return None
    if image.mode.startswith("I"):  # 16 bits
        grey = np.asarray(image).astype(np.int64) * 255 // 65535
        rgb = Image.fromarray(np.repeat(grey[:, :, None], 3, axis=2).astype(np.uint8))
    else:
        rgb = (image.convert("RGBA") if image.has_transparency_data else image).convert("RGB")
    short = min(rgb.size)
    exact = image.format == "JPEG" and image.mode in ("L", "RGB") and short <= SIDE and _flawless(data)
    if short > SIDE:
        width, height = (SIDE if edge == short else edge * SIDE // short for edge in rgb.size)
        rgb = rgb.resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(rgb).astype(np.int16)
    if exact and not image.info.get("progressive"):
        return Seen(pixels, 0.0)
    again = Image.open(io.BytesIO(_encoded(rgb, "JPEG", quality=90, subsampling="4:2:0")))
    return Seen(pixels, float(np.abs(np.asarray(again.convert("RGB")) - pixels).mean()) + MARGIN)


def _flawless(jpeg: bytes) -> bool:
    """Whether libjpeg has nothing to say about it. A JPEG with a flaw is encoded again."""
    try:
        simplejpeg.decode_jpeg(jpeg, "RGB")
    except ValueError:
        return False
    return True
