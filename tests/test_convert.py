"""What becomes of one image on its way into a shard."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from tests.images import decode, encode, photo
from trainer.data.convert import BrokenImageError, convert


def test_a_large_image_is_shrunk_to_the_short_side_and_stays_close_to_the_original() -> None:
    original = photo(1, 120, 90)
    data, odd = convert(encode(original, quality=95), "a.JPEG", short_side=45, quality=90)
    assert odd == ()
    expected = np.asarray(original.resize((60, 45), Image.Resampling.LANCZOS), dtype=float)
    assert decode(data).shape == (45, 60, 3)
    assert np.abs(decode(data) - expected).mean() < 4


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_small_baseline_jpeg_keeps_its_bytes(mode: str) -> None:
    data = encode(photo(1).convert(mode), quality=77)
    assert convert(data, "a.JPEG", short_side=40, quality=90)[0] == data


def test_a_progressive_jpeg_becomes_baseline() -> None:
    data, odd = convert(encode(photo(1), progressive=True), "a.JPEG", short_side=64, quality=95)
    assert odd == ("progressive JPEG",)
    with Image.open(io.BytesIO(data)) as image:
        assert "progressive" not in image.info


def test_adobe_cmyk_becomes_the_colours_that_pil_shows() -> None:
    image = photo(2).convert("CMYK")
    data, odd = convert(encode(image, quality=95), "a.JPEG", short_side=64, quality=95)
    assert odd == ("CMYK",)
    assert np.abs(decode(data).astype(int) - np.asarray(image.convert("RGB"))).mean() < 6


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 48 * 48).astype(np.uint16).reshape(48, 48)
    data, odd = convert(encode(Image.fromarray(ramp), "PNG"), "a.png", short_side=64, quality=95)
    assert odd == ("PNG", "16-bit")
    assert np.abs(decode(data)[:, :, 0] - ramp / 257).max() < 6


def test_alpha_and_palette_become_what_convert_rgb_makes_of_them() -> None:
    see_through = photo(3).convert("RGBA")
    see_through.putalpha(Image.linear_gradient("L").resize(see_through.size))
    palette = photo(4).quantize(16)
    for image, kinds in ((see_through, ("PNG", "alpha")), (palette, ("PNG", "palette"))):
        data, odd = convert(encode(image, "PNG"), "a.png", short_side=64, quality=95)
        assert odd == kinds
        assert np.abs(decode(data).astype(int) - np.asarray(image.convert("RGB"))).mean() < 8
    transparent = encode(palette, "PNG", transparency=bytes([0, 128, 255]))
    assert convert(transparent, "a.png", short_side=64, quality=95)[1] == ("PNG", "palette", "alpha")


def test_a_png_named_jpeg_is_converted_and_counted() -> None:
    data, odd = convert(encode(photo(5), "PNG"), "n01_2.JPEG", short_side=64, quality=95)
    assert odd == ("PNG named .JPEG",)
    assert data[:2] == b"\xff\xd8"


def test_exif_orientation_is_ignored_and_dropped() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    data, _ = convert(encode(photo(6, 80, 60), exif=exif), "a.JPEG", short_side=30, quality=90)
    assert decode(data).shape == (30, 40, 3)
    assert b"Exif" not in data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not an image",
        encode(photo(7))[:-40],
        encode(photo(7), "PNG")[:-400],
        encode(Image.new("F", (9, 9)), "TIFF"),
    ],
    ids=["empty", "text", "truncated JPEG", "truncated PNG", "float"],
)
def test_broken_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(BrokenImageError):
        convert(data, "a.JPEG", short_side=64, quality=90)
