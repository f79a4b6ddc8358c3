"""Pixels: those of torchvision on PIL images, within one level; broken bytes raise."""

from __future__ import annotations

import io
import os
import resource
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize
from torchvision.transforms.functional import resized_crop

from tests.images import encode, photo
from trainer.data.reading.decode import center_into, crop_into, image_size
from trainer.data.reading.order import CROP, CROP_DRAWS, draws, random_resized_crop

SIZES = [
    (500, 375), (375, 500), (256, 256), (232, 300), (300, 232), (233, 310), (97, 131), (131, 97),
    (64, 63), (7, 5), (1, 1), (3, 200), (200, 3), (640, 33), (224, 225), (401, 399),
]  # fmt: skip
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def pixels(resolution: int) -> np.ndarray:
    return np.full((resolution, resolution, 3), 77, np.uint8)


def as_bytes(image: Image.Image, **options: Any) -> np.ndarray:
    return np.frombuffer(encode(image, **options), np.uint8)


def pil(jpeg: np.ndarray) -> Image.Image:
    return Image.open(io.BytesIO(jpeg.tobytes())).convert("RGB")


@contextmanager
def resource_limit(more: int) -> Iterator[None]:
    """So many more bytes of address space."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def assert_close(found: np.ndarray, expected: object, what: object) -> None:
    """Both round to 8 bits between the two directions of resizing, but not alike."""
    errors = np.abs(found.astype(int) - np.asarray(expected))
    assert errors.max() <= 1, what
    assert errors.mean() < 0.25, what


@pytest.mark.parametrize(("resize", "crop"), [(232, 224), (32, 32), (33, 32), (40, 31), (96, 17)])
def test_the_centre_is_that_of_torchvision(resize: int, crop: int) -> None:
    reference = Compose([Resize(resize), CenterCrop(crop)])
    for i, (width, height) in enumerate(SIZES):
        if max(width, height) * resize / min(width, height) > 6000:
            continue  # slow, and no other case
        jpeg, out = as_bytes(photo(i, width, height)), pixels(crop)
        center_into(out, jpeg, resize)
        assert_close(out, reference(pil(jpeg)), (width, height))


def test_the_long_side_is_rounded_as_in_torchvision() -> None:
    """Every length from one short side to three, so that each case of rounding occurs."""
    reference = Compose([Resize(21), CenterCrop(20)])
    for long in range(37, 111):
        for size in ((37, long), (long, 37)):
            jpeg, out = as_bytes(photo(long, *size)), pixels(20)
            center_into(out, jpeg, 21)
            assert_close(out, reference(pil(jpeg)), size)


@pytest.mark.parametrize("options", [{}, {"restart_marker_blocks": 1}], ids=["no markers", "prepared"])
@pytest.mark.parametrize("resolution", [32, 33, 160])
def test_a_crop_is_that_of_torchvision_in_the_same_box(resolution: int, options: dict[str, int]) -> None:
    drawn, boxes = draws(CROP, 1, 2, np.arange(len(SIZES)), CROP_DRAWS), set()
    for i, (width, height) in enumerate(SIZES):
        jpeg, out = as_bytes(photo(i, width, height), **options), pixels(resolution)
        assert image_size(jpeg) == (width, height)
        left, top, w, h = box = random_resized_crop(drawn[i, 1:].tolist(), width, height, SCALE, RATIO)
        expected = resized_crop(
            pil(jpeg), top, left, h, w, [resolution, resolution], InterpolationMode.BILINEAR, antialias=True
        )
        crop_into(out, jpeg, box)
        assert_close(out, expected, (width, height))
        boxes.add(box)
    assert len(boxes) > 10


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1), (8, 3000)])
def test_the_centre_of_a_line_of_pixels_takes_little_memory(size: tuple[int, int]) -> None:
    jpeg, out = as_bytes(photo(1, *size)), pixels(224)
    with resource_limit(2 << 30):
        center_into(out, jpeg, 232)
    assert out.std() > 1


def test_grey_images_become_rgb() -> None:
    jpeg, out = as_bytes(photo(3, 60, 50).convert("L")), pixels(50)
    center_into(out, jpeg, 50)
    assert (out == np.asarray(pil(jpeg))[:, 5:55]).all()
    assert (out[..., 0] == out[..., 2]).all()


def test_the_rotation_in_exif_is_ignored() -> None:
    image, exif = photo(5, 60, 40), Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    turned, plain = as_bytes(image, exif=exif), as_bytes(image)
    assert pil(turned).getexif()[0x0112] == 6
    assert image_size(turned) == (60, 40)
    first, second = pixels(32), pixels(32)
    for write in (lambda out, jpeg: center_into(out, jpeg, 32), lambda out, jpeg: crop_into(out, jpeg, (5, 6, 30, 20))):
        write(first, turned)
        write(second, plain)
        assert (first == second).all()


@pytest.mark.parametrize("options", [{}, {"restart_marker_blocks": 1}], ids=["no markers", "prepared"])
def test_broken_bytes_raise_whatever_reads_them(options: dict[str, Any]) -> None:
    whole, png = encode(photo(1, 200, 200), **options), encode(photo(1), "PNG")
    for broken in (b"", b"not an image", whole[:10], whole[: len(whole) // 2], whole[:-200], png):
        jpeg = np.frombuffer(broken, np.uint8)
        with pytest.raises(ValueError, match=r"JPEG|jpeg"):
            center_into(pixels(32), jpeg, 32)
        with pytest.raises(ValueError, match=r"JPEG|jpeg"):
            crop_into(pixels(32), jpeg, (0, 0, 200, 200))


@pytest.mark.slow
def test_decoding_starts_no_threads_of_its_own() -> None:
    """torch would share a copy of a large crop out over all cores, which the pool of decoding threads already fills."""
    program = """
import numpy as np, os, time
from tests.trainer.data.reading.test_decode import as_bytes, photo, pixels
from trainer.data.reading.decode import center_into, crop_into
jpeg = as_bytes(photo(1, 500, 400), restart_marker_blocks=1)
out = pixels(224)
crop_into(out, jpeg, (3, 5, 10, 10))  # compiles
before = len(os.listdir("/proc/self/task"))
for _ in range(5):
    crop_into(out, jpeg, (3, 5, 450, 380))
    center_into(out, jpeg, 232)
print(len(os.listdir("/proc/self/task")) - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "OMP_NUM_THREADS": "4"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "0\n"


def test_a_jpeg_that_claims_more_pixels_than_any_prepared_one_has_is_refused_before_memory_is_taken() -> None:
    jpeg = bytearray(encode(photo(1)))
    at = jpeg.index(b"\xff\xc0") + 5  # height and width in the header of the frame
    jpeg[at : at + 4] = struct.pack(">HH", 65_500, 65_500)
    for read in (image_size, lambda data: center_into(np.empty((32, 32, 3), np.uint8), data, 32)):
        with pytest.raises(ValueError, match="65500 x 65500 pixels: no more than 178,956,970 are decoded"):
            read(np.frombuffer(jpeg, np.uint8))
