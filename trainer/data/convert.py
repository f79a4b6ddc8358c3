"""One encoded image in, one plain RGB or grey JPEG out: shrunk, re-encoded, or untouched.

Colours become what PIL's `convert("RGB")` and torchvision see: alpha is dropped, palettes are looked up, CMYK is read
in Adobe's inverted form. EXIF orientation is ignored, as they do. Unlike them, 16 bits are scaled to 8, not clipped.
"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

# What Pillow's decoders raise on bad bytes. Truncated files are OSErrors, since LOAD_TRUNCATED_IMAGES stays False.
PILLOW_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class BrokenImageError(Exception):
    """The bytes are not a whole image; the message says what the decoder said."""


def convert(data: bytes, name: str, *, short_side: int, quality: int) -> tuple[bytes, tuple[str, ...]]:
    """The JPEG to store, and what was odd about the image.

    A JPEG that is baseline, RGB or grey, and not larger than `short_side` keeps its bytes. The rest is shrunk if larger
    (Lanczos, so antialiased), and written as baseline JPEG of `quality` with 4:2:0 chroma, without EXIF.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            odd = _oddities(image, name)
            shrinks = min(image.size) > short_side
            if image.format == "JPEG" and image.mode in ("L", "RGB") and "progressive JPEG" not in odd and not shrinks:
                return data, odd
            plain = _to_8_bit(image)
            if shrinks:
                plain = plain.resize(_shrunk(plain.size, short_side), Image.Resampling.LANCZOS)
            plain.info = {}  # a comment would be copied
            encoded = io.BytesIO()
            plain.save(encoded, "JPEG", quality=quality, **({} if plain.mode == "L" else {"subsampling": "4:2:0"}))
            return encoded.getvalue(), odd
    except PILLOW_ERRORS as error:
        raise BrokenImageError(str(error) or type(error).__name__) from error


def _shrunk(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """The short side exactly, the long one rounded down, as torchvision's Resize."""
    width, height = size
    if width <= height:
        return short_side, int(short_side * height / width)
    return int(short_side * width / height), short_side


def _oddities(image: Image.Image, name: str) -> tuple[str, ...]:
    found = []
    if image.format != "JPEG":
        found.append(f"{image.format} named .JPEG" if name.lower().endswith((".jpeg", ".jpg")) else f"{image.format}")
    if image.info.get("progressive"):
        found.append("progressive JPEG")
    if image.mode == "CMYK":  # YCCK too: the decoder turns it into CMYK
        found.append("CMYK")
    elif image.mode in ("L", "1"):
        found.append("grey")
    elif image.mode.startswith("I"):
        found.append("16-bit")
    elif image.mode in ("P", "PA"):
        found.append("palette")
    if image.has_transparency_data:
        found.append("alpha")
    return tuple(found)


def _to_8_bit(image: Image.Image) -> Image.Image:
    """RGB, or L where there is no colour: decoders widen it, and a third of the pixels is stored."""
    if image.mode.startswith("I"):  # I;16, I;16B, or I: 16-bit values in 32
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise ValueError(f"values from {wide.min()} to {wide.max()}: not an image of 8 or 16 bits")
        return Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels: their scale is unknown")
    if image.mode in ("L", "1"):
        return image.convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")  # PIL warns about a palette with transparency otherwise; same colours
    return image.convert("RGB")
