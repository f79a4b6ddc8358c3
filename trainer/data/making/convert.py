"""Converts one encoded image into its copies: plain JPEGs with given short sides, all from one decoding.

Colours become those of PIL's `convert("RGB")` and of torchvision: alpha is dropped, palettes are looked up, CMYK is
read in Adobe's inverted form, and EXIF orientation is ignored. Unlike there, 16 bits are scaled to 8, not clipped.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, UnidentifiedImageError

from trainer.data.making.faults import reason

Pixels = npt.NDArray[np.uint8]  # (H, W, 3), RGB

CONVERSION = 3  # part of the version of prepared data: raise it when the same image and options give other bytes

LONGEST = 65_500  # pixels of a side: libjpeg takes no more
FORMATS = ("JPEG", "PNG", "BMP", "PPM", "TIFF", "WEBP", "GIF")  # not all: Pillow runs Ghostscript on PostScript
NO_FORMAT = f"its bytes begin as none of {', '.join(FORMATS)}"
NO_IMAGE = (  # what lies in the place of an image, and how such bytes begin
    ("it is a pointer of Git LFS: fetch what it stands for, `git lfs pull`", b"version https://git-lfs"),
    ("it is a web page", b"<!doctype html"),
    ("it is a web page", b"<html"),
)


class BrokenImageError(Exception):
    """The bytes are not a whole image. The message is the decoder's."""


def convert(data: bytes, name: str, sides: Sequence[int], quality: int) -> tuple[tuple[bytes, ...], tuple[str, ...]]:
    """A JPEG for each short side (in pixels, largest first), and what was odd about the image.

    A baseline JPEG, RGB or grey, without an error and not larger than the side, keeps its pixels. It gets restart
    markers, or keeps its bytes where that is impossible. Other images are shrunk if larger, each copy from the one
    before, and encoded. Each copy is decoded once more in the way of training. Raises BrokenImageError, MemoryError.
    """
    _load_decoders()
    with _naming_what_is_broken(data):
        pixels, odd, plain = _pixels_of(data, name)
        height, width = pixels.shape[:2]
        copies: list[bytes] = []
        for side in sides:
            size = _stored_size(height, width, side)
            if size != pixels.shape[:2]:
                # From the larger copy, in two thirds of the time. The result is closer to shrinking the original
                # (53 dB) than to its own JPEG (34 dB).
                pixels = _shrink(pixels, *size)
                copies.append(_encode_and_check(pixels, quality))
            elif copies:  # it has not been shrunk yet
                copies.append(copies[-1])
            elif plain and _keeps(marked := _with_markers(data), pixels):
                copies.append(marked)
            else:
                odd += ("unusual JPEG",) if plain else ()
                copies.append(_encode_and_check(pixels, quality))
    return tuple(copies), odd


def read_pixels(data: bytes, name: str) -> tuple[Pixels, tuple[str, ...]]:
    """The image in its own size, as `convert` sees it, and what was odd about it.

    Raises BrokenImageError, MemoryError.
    """
    with _naming_what_is_broken(data):
        pixels, odd, _ = _pixels_of(data, name)
    return pixels, odd


@contextmanager
def _naming_what_is_broken(data: bytes) -> Iterator[None]:
    """Turn what decoders raise within into BrokenImageError."""
    try:
        yield
    except (BrokenImageError, MemoryError):
        raise
    except UnidentifiedImageError as error:  # its message has an address in it
        raise BrokenImageError(_instead(data)) from error
    except Exception as error:  # the decoders raise all kinds on bad bytes
        raise BrokenImageError(reason(error)) from error


@cache
def _load_decoders() -> None:
    """Import what takes seconds: if the installation lacks something, that is no fault of an image."""
    import trainer.data.making.restart_markers
    import trainer.data.reading.decode  # noqa: F401


def _instead(data: bytes) -> str:
    """What the bytes are, if they are no image."""
    if not data:
        return "it is empty"
    begin = data[:64].lstrip().lower()
    return next((what for what, start in NO_IMAGE if begin.startswith(start)), NO_FORMAT)


def _encode_and_check(pixels: Pixels, quality: int) -> bytes:
    jpeg = encode(pixels, quality)
    if _read_back(jpeg, pixels).shape != pixels.shape:
        raise BrokenImageError(f"what was made of it is not {pixels.shape[1]} x {pixels.shape[0]} pixels any more")
    return jpeg


def _with_markers(data: bytes) -> bytes:
    from trainer.data.making.restart_markers import add_markers  # it imports numba: half a second, and 70 MB

    return add_markers(data) or data


def _keeps(jpeg: bytes, pixels: Pixels) -> bool:
    """Whether training gets these pixels from the JPEG. It does not know some rare kinds, 4:4:1 for one."""
    try:
        return np.array_equal(_read_back(jpeg, pixels), pixels)
    except ValueError:
        return False


def _read_back(jpeg: bytes, pixels: Pixels) -> Pixels:
    """What training decodes. It is valid until this thread decodes again."""
    from trainer.data.reading.decode import decode_box  # it imports torch, which takes seconds

    height, width = pixels.shape[:2]
    return decode_box(np.frombuffer(jpeg, np.uint8), (0, 0, width, height))


def encode(pixels: Pixels, quality: int) -> bytes:
    """A baseline JPEG, RGB 4:2:0 even for a grey image, with a restart marker after every 16x16 block.

    The markers cost 5 % of the bytes and let a reader cut out a crop without decoding what is around it.
    """
    encoded, size = io.BytesIO(), (pixels.shape[1], pixels.shape[0])
    image = Image.frombuffer("RGB", size, pixels, "raw", "RGB", 0, 1)  # `fromarray` would copy the pixels once more
    image.save(encoded, "JPEG", quality=quality, subsampling="4:2:0", restart_marker_blocks=1)
    return encoded.getvalue()


def _pixels_of(data: bytes, name: str) -> tuple[Pixels, tuple[str, ...], bool]:
    """The pixels, what was odd, and whether the bytes may be stored without encoding them again."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:  # reads the header only
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
    """Antialiased and bicubic. It equals Pillow's result to 73 dB, in a fifth of the time."""
    from trainer.data.reading.decode import resize_into

    shrunk = np.empty((height, width, 3), np.uint8)
    try:
        resize_into(shrunk, pixels, "bicubic")
    except RuntimeError as error:  # of torch, for which nothing but memory can lack here
        raise MemoryError(reason(error)) from error
    return shrunk


def _stored_size(height: int, width: int, side: int) -> tuple[int, int]:
    """(height, width) of the copy with this short side. Smaller images keep theirs, unless one side is too long."""
    if min(height, width) > side:
        height, width = _shrunk_size(height, width, side)
    if (longest := max(height, width)) > LONGEST:
        height, width = max(1, height * LONGEST // longest), max(1, width * LONGEST // longest)
    return height, width


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
