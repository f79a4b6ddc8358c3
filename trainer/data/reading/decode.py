"""JPEG bytes to uint8 pixels of a crop, with torchvision's geometry. EXIF orientation is ignored, as there.

libjpeg-turbo decodes what the crop needs (`window`), and torch's antialiased filter resizes it. Both release the
interpreter lock. Decoded pixels equal PIL's; resized ones differ from PIL's by at most one level, and with the bicubic
filter by two in some of 100,000 values.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import simplejpeg
import torch
from torch import Tensor

from trainer.data.jpeg import Bytes

if TYPE_CHECKING:
    from trainer.data.reading.window import Box

ResizeMode = Literal["bilinear", "bicubic"]
CropPlace = Literal["centre", "top-left", "top-right", "bottom-left", "bottom-right"]

THIN = 200  # times as long as wide: no photograph is
MOST_PIXELS = 2 * 89_478_485  # of a JPEG: above it Pillow refuses an image, so none such was ever prepared

_memory = threading.local()  # each decoding thread's buffers, by name: fresh pages would cost as much as decoding


def image_size(jpeg: Bytes) -> tuple[int, int]:
    """(width, height) in pixels. ValueError if these are not the bytes of a JPEG, or of too many pixels."""
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(jpeg, strict=False)
    except KeyError as error:  # from the library's table of colour spaces
        raise ValueError("the JPEG's headers are damaged") from error
    if width * height > MOST_PIXELS:
        raise ValueError(f"{width} x {height} pixels: no more than {MOST_PIXELS:,} are decoded")
    return width, height


def crop_into(out: np.ndarray, jpeg: Bytes, box: Box) -> None:
    """Write the box, resized, into out: (pixels, pixels, 3) uint8, C-contiguous. ValueError on broken bytes."""
    _, _, width, height = box
    # crop before resize, as torchvision does: pixels outside the box do not bleed in
    crop = _bytes("crop", height * width * 3).reshape(height, width, 3)
    crop[:] = decode_box(jpeg, box)
    resize_into(out, crop)


def decode_box(jpeg: Bytes, box: Box) -> np.ndarray:
    """The pixels of the box: (height, width, 3) uint8, valid until this thread decodes again. ValueError as above."""
    from trainer.data.reading.window import cut  # it imports numba: a quarter of a second that whole images do not need

    window = cut(jpeg, box, _bytes("window", len(jpeg)))
    _, _, width, height = box
    pixels = _decode(window.jpeg, strict=window.whole)
    return pixels[window.top : window.top + height, window.left : window.left + width]


@dataclass(frozen=True)
class Picture:
    """A square that is cut out of a resized image. Pixels; `resize` is the short side, and no less than `crop`."""

    resize: int
    crop: int
    place: CropPlace = "centre"
    mode: ResizeMode = "bilinear"

    @property
    def bytes(self) -> int:
        return self.crop * self.crop * 3


def center_into(out: np.ndarray, jpeg: Bytes, resize: int, mode: ResizeMode = "bilinear") -> None:
    """Resize the short side, then write the centre crop into out: (pixels, pixels, 3) uint8, C-contiguous."""
    center_pixels_into(out, _decode(jpeg, strict=True), resize, mode)


def center_pixels_into(out: np.ndarray, image: np.ndarray, resize: int, mode: ResizeMode = "bilinear") -> None:
    """`center_into` for an image that is decoded: (H, W, 3) uint8, C-contiguous."""
    cut_out([out], image, [Picture(resize, out.shape[0], mode=mode)])


def pictures_into(outs: Sequence[np.ndarray], jpeg: Bytes, pictures: Sequence[Picture]) -> None:
    """Decode once, and write each picture into its out: (crop, crop, 3) uint8. ValueError on broken bytes."""
    cut_out(outs, _decode(jpeg, strict=True), pictures)


def cut_out(outs: Sequence[np.ndarray], image: np.ndarray, pictures: Sequence[Picture]) -> None:
    """`pictures_into` for an image that is decoded. Neighbours of one size and mode share one resized image."""
    image, resized = _without_ends(image), np.empty((0, 0, 3), np.uint8)
    for before, picture, out in zip([None, *pictures], pictures, outs, strict=False):
        if before is None or (before.resize, before.mode) != (picture.resize, picture.mode):
            resized = _resized(image, picture.resize, picture.mode)
        top, left = _corner(picture, resized.shape[0], resized.shape[1])
        out[:] = resized[top : top + picture.crop, left : left + picture.crop]


def _without_ends(image: np.ndarray) -> np.ndarray:
    """The middle of a line of pixels: resizing the whole one takes gigabytes."""
    height, width = image.shape[:2]
    most = THIN * min(width, height)
    if max(width, height) <= most:
        return image
    top, left = max(0, (height - most) // 2), max(0, (width - most) // 2)
    return np.ascontiguousarray(image[top : top + most, left : left + most])


def _resized(image: np.ndarray, resize: int, mode: ResizeMode) -> np.ndarray:
    """With that short side: (H, W, 3) uint8, valid until this thread resizes again."""
    height, width = image.shape[:2]
    short = min(width, height)
    height, width = int(resize * height / short), int(resize * width / short)
    resized = _bytes("resized", height * width * 3).reshape(height, width, 3)
    resize_into(resized, image, mode)
    return resized


def _corner(picture: Picture, height: int, width: int) -> tuple[int, int]:
    """(top, left) of a square, as torchvision's CenterCrop and FiveCrop have it."""
    below, beside, place = height - picture.crop, width - picture.crop, picture.place
    if place == "centre":
        return round(below / 2), round(beside / 2)
    return (below if "bottom" in place else 0), (beside if "right" in place else 0)


def _bytes(name: str, size: int) -> Bytes:
    """(size,) uint8 of this thread, valid until it asks for `name` again."""
    memory: Bytes | None = getattr(_memory, name, None)
    if memory is None or len(memory) < size:
        memory = np.empty(size, np.uint8)
        setattr(_memory, name, memory)
    return memory[:size]


def _decode(jpeg: Bytes, *, strict: bool) -> np.ndarray:
    """(height, width, 3) uint8, valid until this thread decodes again."""
    width, height = image_size(jpeg)
    memory = _bytes("decoded", height * width * 3)
    decoded: np.ndarray = simplejpeg.decode_jpeg(jpeg, "RGB", buffer=memory, strict=strict)
    return decoded


def resize_into(out: np.ndarray, image: np.ndarray, mode: ResizeMode = "bilinear") -> None:
    """Antialiased where it shrinks: (H, W, 3) uint8 both, C-contiguous: else torch copies, with threads."""
    target, filters = _nchw(out), torch._C._nn
    # What F.interpolate(…, antialias=True) calls; its public face has no `out`, which costs a copy and fresh pages.
    resize = filters._upsample_bilinear2d_aa if mode == "bilinear" else filters._upsample_bicubic2d_aa
    resize(_nchw(image), target.shape[2:], False, out=target)  # type: ignore[call-arg]


def _nchw(image: np.ndarray) -> Tensor:
    """(H, W, 3) as (1, 3, H, W), in the same memory."""
    return torch.from_numpy(image.transpose(2, 0, 1)[None])
