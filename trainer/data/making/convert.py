"""Converts one encoded image into its copies: plain JPEGs with given short sides, all from one decoding.

Colours become those of PIL's `convert("RGB")` and of torchvision: alpha is dropped, palettes are looked up, CMYK is
read in Adobe's inverted form, and EXIF orientation is ignored. Unlike there, 16 bits are scaled to 8, not clipped.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from trainer.data.making.restart_markers import add_markers

Pixels = npt.NDArray[np.uint8]  # (H, W, 3), RGB

CONVERSION = 2  # part of the version of prepared data: raise it when the same image and options give other bytes

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
    """The bytes are not a whole image. The message is the decoder's."""


def convert(data: bytes, name: str, sides: Sequence[int], quality: int) -> tuple[tuple[bytes, ...], tuple[str, ...]]:
    """A JPEG for each short side (in pixels, largest first), and what was odd about the image.

    A baseline JPEG, RGB or grey, without an error and not larger than the side, keeps its pixels. It gets restart
    markers, or keeps its bytes where that is impossible. Other images are shrunk if larger, each copy from the one
    before, and encoded. Raises BrokenImageError.
    """
    try:
        pixels, odd, plain = _pixels_of(data, name)
        height, width = pixels.shape[:2]
        copies: list[bytes] = []
        for side in sides:
            if min(height, width) > side:
                # From the larger copy, in two thirds of the time. The result is closer to shrinking the original
                # (53 dB) than to its own JPEG (34 dB).
                pixels = _shrink(pixels, *_shrunk_size(height, width, side))
                copies.append(encode(pixels, quality))
            elif copies:  # it has not been shrunk yet
                copies.append(copies[-1])
            else:
                copies.append((add_markers(data) or data) if plain else encode(pixels, quality))
    except PILLOW_ERRORS as error:
        raise BrokenImageError(lasting_text(error)) from error
    return tuple(copies), odd


def lasting_text(error: Exception) -> str:
    """What an error says, without what differs from one call to the next: addresses of objects."""
    return re.sub(r" *<[^<>]* at 0x[0-9a-fA-F]+>", "", str(error)) or type(error).__name__


def encode(pixels: Pixels, quality: int) -> bytes:
    """A baseline JPEG, RGB 4:2:0 even for a grey image, with a restart marker after every 16x16 block.

    The markers cost 5 % of the bytes and let a reader cut out a crop without decoding what is around it.
    """
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "JPEG", quality=quality, subsampling="4:2:0", restart_marker_blocks=1)
    return encoded.getvalue()


def _pixels_of(data: bytes, name: str) -> tuple[Pixels, tuple[str, ...], bool]:
    """The pixels, what was odd, and whether the bytes may be stored without encoding them again."""
    with Image.open(io.BytesIO(data)) as image:  # reads the header only
        if image.format == "JPEG" and image.mode in ("L", "RGB"):
            odd = _oddities(image, name)
            try:  # the same library and pixels as Pillow's, but the interpreter's lock is free meanwhile
                pixels = simplejpeg.decode_jpeg(data, "RGB")
                return pixels, odd, "progressive JPEG" not in odd
            except ValueError:  # this decoder is strict: Pillow decides whether it is a flaw or a broken image
                return _to_8_bit(image), (*odd, "flawed JPEG"), False
        image.load()
        return _to_8_bit(image), _oddities(image, name), False


def _shrink(pixels: Pixels, height: int, width: int) -> Pixels:
    """Antialiased and bicubic. It equals Pillow's result to 73 dB, in a third of the time."""
    import torch  # this takes seconds, and only images that are shrunk need it

    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]  # (1, 3, H, W)
    shrunk = torch.nn.functional.interpolate(image, (height, width), mode="bicubic", antialias=True)
    # NumPy changes the order, since torch would start threads for it, and each core has one already.
    return np.ascontiguousarray(shrunk[0].permute(1, 2, 0).numpy())


def _shrunk_size(height: int, width: int, side: int) -> tuple[int, int]:
    """(height, width) with exactly this short side; the long one is rounded down, as in torchvision's Resize."""
    if width <= height:
        return int(side * height / width), side
    return side, int(side * width / height)


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


def _to_8_bit(image: Image.Image) -> Pixels:
    if image.mode.startswith("I"):  # I;16, I;16B, or I: 16-bit values in 32
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise ValueError(f"values from {wide.min()} to {wide.max()}: not an image of 8 or 16 bits")
        grey = ((wide * 255 + 32767) // 65535).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise ValueError("floating-point pixels: their scale is unknown")
    if image.mode not in ("L", "1") and image.has_transparency_data:
        image = image.convert("RGBA")  # PIL warns about a palette with transparency otherwise; same colours
    return np.array(image.convert("RGB"))  # a copy: torch wants it writable
