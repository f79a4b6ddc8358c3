"""Pixels: equal to torchvision's on PIL images, bit for bit; odd images are read, broken ones are not."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets.folder import pil_loader
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize
from torchvision.transforms.functional import resized_crop

from tests.images import encode, photo
from trainer.data.decode import center_into, crop_into, open_rgb
from trainer.data.sampling import CROP, generator, random_resized_crop

SIZES = [
    (500, 375), (375, 500), (256, 256), (232, 300), (300, 232), (233, 310), (97, 131), (131, 97),
    (64, 63), (7, 5), (1, 1), (3, 200), (200, 3), (640, 33), (224, 225), (401, 399),
]  # fmt: skip
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def pixels(resolution: int) -> np.ndarray:
    return np.full((resolution, resolution, 3), 77, np.uint8)


@pytest.mark.parametrize(("resize", "crop"), [(232, 224), (32, 32), (33, 32), (40, 31), (96, 17)])
def test_the_centre_is_that_of_torchvision(resize: int, crop: int) -> None:
    reference = Compose([Resize(resize), CenterCrop(crop)])
    for i, (width, height) in enumerate(SIZES):
        if max(width, height) * resize / min(width, height) > 6000:
            continue  # slow, and no other case
        jpeg, out = encode(photo(i, width, height)), pixels(crop)
        center_into(out, jpeg, resize)
        assert (out == np.asarray(reference(open_rgb(jpeg)))).all(), (width, height)


def test_the_long_side_is_rounded_as_in_torchvision() -> None:
    """Every length from one short side to three, so that each case of rounding occurs."""
    reference = Compose([Resize(21), CenterCrop(20)])
    for long in range(37, 111):
        for size in ((37, long), (long, 37)):
            png, out = encode(photo(long, *size), "PNG"), pixels(20)
            center_into(out, png, 21)
            assert (out == np.asarray(reference(open_rgb(png)))).all(), size


@pytest.mark.parametrize("resolution", [32, 33, 160])
def test_a_crop_is_that_of_torchvision_in_the_same_box(resolution: int) -> None:
    boxes = set()
    for i, (width, height) in enumerate(SIZES):
        jpeg = encode(photo(i, width, height))
        left, top, w, h = random_resized_crop(generator(CROP, 1, 2, i), width, height, SCALE, RATIO)
        boxes.add((left, top, w, h))
        expected = resized_crop(
            open_rgb(jpeg), top, left, h, w, [resolution, resolution], InterpolationMode.BILINEAR, antialias=True
        )
        out = pixels(resolution)
        crop_into(out, jpeg, generator(CROP, 1, 2, i), SCALE, RATIO)
        assert (out == np.asarray(expected)).all(), (width, height)
    assert len(boxes) > 10


def test_the_bytes_may_lie_in_someone_elses_memory() -> None:
    jpeg = encode(photo(1))
    held = memoryview(b"before" + jpeg + b"after")[6:-5].toreadonly()
    first, second = pixels(32), pixels(32)
    center_into(first, held, 32)
    center_into(second, jpeg, 32)
    assert (first == second).all()
    assert first.std() > 1


def odd_images() -> dict[str, bytes]:
    image = photo(3, 60, 50)
    deep = Image.fromarray(np.arange(3000, dtype=np.uint16).reshape(50, 60) // 12)  # to 249: PIL clips, prepare scales
    transparent = image.copy()
    transparent.putalpha(128)
    return {
        "grayscale": encode(image.convert("L")),
        "1-bit": encode(image.convert("1"), "PNG"),
        "CMYK": encode(image.convert("CMYK")),
        "palette": encode(image.quantize(16), "PNG"),
        "alpha": encode(transparent, "PNG"),
        "gray with alpha": encode(transparent.convert("LA"), "PNG"),
        "16-bit": encode(deep, "PNG"),
        "progressive": encode(image, progressive=True),
        "WebP": encode(image, "WEBP"),
    }


@pytest.mark.parametrize("kind", odd_images())
def test_odd_images_become_rgb_as_torchvision_reads_them(kind: str, tmp_path: Path) -> None:
    body = odd_images()[kind]
    if kind == "CMYK":
        assert Image.open(io.BytesIO(body)).mode == "CMYK"
    (tmp_path / "image.JPEG").write_bytes(body)
    expected = pil_loader(str(tmp_path / "image.JPEG"))
    found = np.asarray(open_rgb(body))
    assert (found.dtype, found.shape) == (np.uint8, (50, 60, 3))
    assert (found == np.asarray(expected)).all()
    out = pixels(50)
    center_into(out, body, 50)
    assert (out == found[:, 5:55]).all()
    crop_into(out, body, generator(CROP, 0, 0), SCALE, RATIO)
    assert out.max() > out.min()


def test_colours_survive_cmyk_and_alpha() -> None:
    red = Image.new("RGB", (16, 16), (250, 10, 20))
    transparent = red.copy()
    transparent.putalpha(3)
    for body in (encode(red.convert("CMYK"), quality=95), encode(transparent, "PNG"), encode(red, quality=95)):
        assert np.abs(np.asarray(open_rgb(body)).astype(int) - (250, 10, 20)).max() <= 6


def test_the_rotation_in_exif_is_ignored() -> None:
    image, exif = photo(5, 60, 40), Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    turned, plain = encode(image, exif=exif), encode(image)
    assert Image.open(io.BytesIO(turned)).getexif()[0x0112] == 6
    assert open_rgb(turned).size == (60, 40)
    first, second = pixels(32), pixels(32)
    center_into(first, turned, 32)
    center_into(second, plain, 32)
    assert (first == second).all()


def test_broken_bytes_raise_whatever_reads_them() -> None:
    whole, png = encode(photo(1, 200, 200)), encode(photo(1), "PNG")
    for broken in (b"", b"not an image", whole[:10], whole[: len(whole) // 2], whole[:-200], png[: len(png) // 2]):
        with pytest.raises((OSError, SyntaxError)):
            center_into(pixels(32), broken, 32)
        with pytest.raises((OSError, SyntaxError)):
            crop_into(pixels(32), broken, generator(CROP, 0, 0), SCALE, RATIO)
