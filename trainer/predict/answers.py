"""What a network says of images: each is read, converted and cut as in preparation and validation.

An image that cannot be read gets a reason in place of an answer, and the others go on. Memory does not grow with the
number of images.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image

from trainer.contract import UserError
from trainer.data.making.convert import BrokenImageError, Pixels, read_pixels
from trainer.data.making.faults import reason
from trainer.data.reading.decode import Picture, center_pixels_into
from trainer.predict.download import MOST_IMAGE_BYTES, NoImageError, fetch_image
from trainer.predict.sources import ImageSource
from trainer.recipes.config import Config
from trainer.scoring.members import Member
from trainer.scoring.probabilities import config_for, log_probabilities
from trainer.scoring.views import ONE_VIEW
from trainer.text import show_bytes

IMAGES_AT_A_TIME = 32
MOST_FILE_BYTES = 512 << 20  # of an image on disk
ORIENTATION, UPRIGHT = 0x0112, 1  # of EXIF


@dataclass(frozen=True)
class Seen:
    """An image that the network gets."""

    pixels: Pixels  # (crop, crop, 3)
    odd: tuple[str, ...]  # as preparation counts it, and whether it is stored turned


@dataclass(frozen=True)
class ImageAnswer:
    """Of one image: the most probable classes, the best first."""

    source: ImageSource
    seen: Seen
    top: tuple[tuple[int, float], ...]  # the number of a class, and its probability


@dataclass(frozen=True)
class Unread:
    """An image without an answer, and why."""

    source: ImageSource
    why: str


def answer_images(
    member: Member, sources: Sequence[ImageSource], config: Config, device: torch.device, top: int
) -> Iterator[ImageAnswer | Unread]:
    """An answer for each image, in order. Raises UserError for outputs that are not finite, and odd sizes of a card."""
    [picture], model = ONE_VIEW.pictures(member.card), member.model.to(device)
    with ThreadPoolExecutor(min(len(sources), len(os.sched_getaffinity(0)))) as pool:
        for first in range(0, len(sources), IMAGES_AT_A_TIME):
            part = sources[first : first + IMAGES_AT_A_TIME]
            read = list(pool.map(partial(_see, picture=picture), part))
            images = [seen.pixels for seen in read if isinstance(seen, Seen)]
            rows = iter(probabilities(model, images, config_for(member.card, config), device) if images else ())
            for source, seen in zip(part, read, strict=True):
                if isinstance(seen, Seen):
                    yield ImageAnswer(source, seen, _most_probable(next(rows), top, member.name))
                else:
                    yield Unread(source, seen)


@torch.inference_mode()
def probabilities(
    model: torch.nn.Module, images: Sequence[Pixels], config: Config, device: torch.device
) -> torch.Tensor:
    """(N, classes) float32, by the lines of validation."""
    stacked = torch.from_numpy(np.stack(images)).to(device)
    return log_probabilities(model, stacked, False, config, device).exp().cpu()


def _most_probable(row: torch.Tensor, top: int, name: str) -> tuple[tuple[int, float], ...]:
    if not row.isfinite().all():
        raise UserError(f"{name} gives outputs that are not finite: its weights are damaged; choose others")
    values, numbers = row.topk(min(top, len(row)))
    return tuple(zip(numbers.tolist(), values.tolist(), strict=True))


def _see(source: ImageSource, picture: Picture) -> Seen | str:
    """What the network gets, or why it gets nothing."""
    try:
        data, called = _read_bytes(source)
        pixels, odd = read_pixels(data, source.name)
        seen = np.empty((picture.crop, picture.crop, 3), np.uint8)
        center_pixels_into(seen, pixels, picture.resize, picture.mode)
    except (NoImageError, BrokenImageError) as error:
        calls = f" (the server calls it {called})" if isinstance(error, BrokenImageError) and called else ""
        return f"{error}{calls}"
    except OSError as error:
        return error.strerror or reason(error)
    except MemoryError as error:
        return f"it needs more memory than this machine has ({reason(error)})"
    return Seen(seen, odd + _turned(data))


def _read_bytes(source: ImageSource) -> tuple[bytes, str]:
    """The bytes, and what a server calls them, else "". Raises OSError, NoImageError."""
    if source.kind == "url":
        return fetch_image(source.address)
    if source.kind == "file":
        return _read_file(source.address), ""
    data = sys.stdin.buffer.read(MOST_IMAGE_BYTES + 1)
    if len(data) > MOST_IMAGE_BYTES:
        raise NoImageError(f"it has more than {show_bytes(MOST_IMAGE_BYTES)}: name a file instead")
    return data, ""


def _read_file(path: str) -> bytes:
    """A folder or a pattern may have pipes and devices in it, of which some have no end, and others never begin."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise NoImageError("it is a pipe, a device or a socket, and no file")
        if found.st_size > MOST_FILE_BYTES:
            raise NoImageError(f"it has more than {show_bytes(MOST_FILE_BYTES)}: make it smaller")
        return file.read(found.st_size)


def _turned(data: bytes) -> tuple[str, ...]:
    """A camera may store a photograph turned, and say so in EXIF. Training ignores that, and so the network does."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            turned = image.getexif().get(ORIENTATION, UPRIGHT) != UPRIGHT
    except (SyntaxError, LookupError, ValueError, OSError, struct.error):  # damaged EXIF is passed over, too
        turned = False
    return ("stored turned, and seen so",) if turned else ()
