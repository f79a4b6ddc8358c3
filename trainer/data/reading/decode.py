"""JPEG bytes to uint8 pixels of a crop, with torchvision's geometry. EXIF orientation is ignored, as there.

libjpeg-turbo decodes what the crop needs (`window`), and torch's antialiased bilinear filter resizes it. Both release
the interpreter lock. Decoded pixels equal PIL's; resized ones differ from PIL's by at most one level.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Literal

import numpy as np
import simplejpeg
import torch
from torch import Tensor

from trainer.data.jpeg import Bytes

if TYPE_CHECKING:
    from trainer.data.reading.window import Box

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


def center_into(out: np.ndarray, jpeg: Bytes, resize: int) -> None:
    """Resize the short side, then write the centre crop into out: (pixels, pixels, 3) uint8, C-contiguous."""
    center_pixels_into(out, _decode(jpeg, strict=True), resize)


def center_pixels_into(out: np.ndarray, image: np.ndarray, resize: int) -> None:
    """`center_into` for an image that is decoded: (H, W, 3) uint8, C-contiguous."""
    pixels = out.shape[0]
    height, width = image.shape[:2]
    short = min(width, height)
    if max(width, height) > THIN * short:  # take its middle: resizing a whole line of pixels takes gigabytes
        top, left = max(0, (height - THIN * short) // 2), max(0, (width - THIN * short) // 2)
        image = np.ascontiguousarray(image[top : top + THIN * short, left : left + THIN * short])
        height, width = image.shape[:2]
    height, width = int(resize * height / short), int(resize * width / short)
    resized = _bytes("resized", height * width * 3).reshape(height, width, 3)
    resize_into(resized, image)
    top, left = round((height - pixels) / 2), round((width - pixels) / 2)
    out[:] = resized[top : top + pixels, left : left + pixels]


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


def resize_into(out: np.ndarray, image: np.ndarray, kind: Literal["bilinear", "bicubic"] = "bilinear") -> None:
    """Antialiased where it shrinks: (H, W, 3) uint8 both, C-contiguous: else torch copies, with threads."""
    target, filters = _nchw(out), torch._C._nn
    # What F.interpolate(…, antialias=True) calls; its public face has no `out`, which costs a copy and fresh pages.
    resize = filters._upsample_bilinear2d_aa if kind == "bilinear" else filters._upsample_bicubic2d_aa
    resize(_nchw(image), target.shape[2:], False, out=target)  # type: ignore[call-arg]


def _nchw(image: np.ndarray) -> Tensor:
    """(H, W, 3) as (1, 3, H, W), in the same memory."""
    return torch.from_numpy(image.transpose(2, 0, 1)[None])
