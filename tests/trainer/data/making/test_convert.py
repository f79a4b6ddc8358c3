"""What becomes of one image on its way into a shard."""

from __future__ import annotations

import io
import re
import sys

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from tests.images import decode, encode, photo
from trainer.data.making.convert import BrokenImageError, _load_decoders, convert

RGB_420 = (((2, 2), 0), ((1, 1), 1), ((1, 1), 1))  # sampling factors and quantisation table of Y, Cb, Cr


def test_a_large_image_is_shrunk_to_the_short_side_and_stays_close_to_the_original() -> None:
    original = photo(1, 120, 90)
    (data,), odd = convert(encode(original, quality=95), "a.JPEG", [45], 90)
    assert odd == ()
    expected = np.asarray(original.resize((60, 45), Image.Resampling.LANCZOS), dtype=float)
    assert decode(data).shape == (45, 60, 3)
    assert np.abs(decode(data) - expected).mean() < 4


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((first.astype(float) - second) ** 2)))


def test_every_copy_comes_from_one_decode_and_looks_like_a_resize_of_the_original() -> None:
    original = photo(1, 501, 376)
    copies, _ = convert(encode(original, quality=98, subsampling="4:4:4"), "a.JPEG", [256, 128], 95)
    for copy, size in zip(copies, [(341, 256), (170, 128)], strict=True):
        assert decode(copy).shape == (size[1], size[0], 3)
        assert psnr(decode(copy), np.asarray(original.resize(size, Image.Resampling.BICUBIC))) > 37


def test_sides_that_the_image_does_not_reach_share_the_same_bytes() -> None:
    jpeg, png = encode(photo(1, 80, 60)), encode(photo(1, 80, 60), "PNG")
    large, middle, small = convert(jpeg, "a.JPEG", [100, 60, 30], 90)[0]
    assert large == middle
    assert np.array_equal(decode(large), decode(jpeg))
    assert decode(small).shape == (30, 40, 3)
    large, middle, small = convert(png, "a.png", [100, 60, 30], 90)[0]
    assert large == middle
    assert decode(middle).shape == (60, 80, 3)
    assert decode(small).shape == (30, 40, 3)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_what_is_written_is_rgb_420_with_a_restart_marker_after_every_block(mode: str) -> None:
    (data,), _ = convert(encode(photo(1, 150, 110).convert(mode)), "a.JPEG", [72], 90)
    with Image.open(io.BytesIO(data)) as image:
        assert isinstance(image, JpegImageFile)
        assert image.mode == "RGB"
        assert "progressive" not in image.info
        assert tuple(((layer[1], layer[2]), layer[3]) for layer in image.layer) == RGB_420
        blocks = -(-image.width // 16) * -(-image.height // 16)
    assert len(re.findall(rb"\xff[\xd0-\xd7]", data)) == blocks - 1


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_small_baseline_jpeg_keeps_its_pixels_and_is_given_restart_markers(mode: str) -> None:
    data = encode(photo(1).convert(mode), quality=77)
    (stored,), _ = convert(data, "a.JPEG", [40], 90)
    assert np.array_equal(decode(stored), decode(data))
    assert b"\xff\xd0" in stored
    assert b"\xff\xd0" not in data


def test_a_small_jpeg_that_has_restart_markers_keeps_its_bytes() -> None:
    data = encode(photo(1), quality=77, restart_marker_blocks=1)
    assert convert(data, "a.JPEG", [40], 90)[0][0] == data


def test_a_progressive_jpeg_becomes_baseline() -> None:
    (data,), odd = convert(encode(photo(1), progressive=True), "a.JPEG", [64], 95)
    assert odd == ("progressive JPEG",)
    with Image.open(io.BytesIO(data)) as image:
        assert "progressive" not in image.info


def test_a_flawed_jpeg_that_pillow_reads_is_written_again_and_counted() -> None:
    whole = encode(photo(1))
    flawed = whole[:-2] + bytes(8) + whole[-2:]  # bytes that belong to nothing
    with pytest.raises(ValueError, match="extraneous"):
        simplejpeg.decode_jpeg(flawed)
    (data,), odd = convert(flawed, "a.JPEG", [64], 95)
    assert odd == ("flawed JPEG",)
    assert psnr(simplejpeg.decode_jpeg(data, "RGB"), decode(whole)) > 30


def test_adobe_cmyk_becomes_the_colours_that_pil_shows() -> None:
    image = photo(2).convert("CMYK")
    (data,), odd = convert(encode(image, quality=95), "a.JPEG", [64], 95)
    assert odd == ("CMYK",)
    assert np.abs(decode(data).astype(int) - np.asarray(image.convert("RGB"))).mean() < 6


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 48 * 48).astype(np.uint16).reshape(48, 48)
    (data,), odd = convert(encode(Image.fromarray(ramp), "PNG"), "a.png", [64], 95)
    assert odd == ("PNG", "16-bit")
    assert np.abs(decode(data)[:, :, 0] - ramp / 257).max() < 6


def test_alpha_and_palette_become_what_convert_rgb_makes_of_them() -> None:
    see_through = photo(3).convert("RGBA")
    see_through.putalpha(Image.linear_gradient("L").resize(see_through.size))
    palette = photo(4).quantize(16)
    for image, kinds in ((see_through, ("PNG", "alpha")), (palette, ("PNG", "palette"))):
        (data,), odd = convert(encode(image, "PNG"), "a.png", [64], 95)
        assert odd == kinds
        assert np.abs(decode(data).astype(int) - np.asarray(image.convert("RGB"))).mean() < 8
    transparent = encode(palette, "PNG", transparency=bytes([0, 128, 255]))
    assert convert(transparent, "a.png", [64], 95)[1] == ("PNG", "palette", "alpha")


def test_a_png_named_jpeg_is_converted_and_counted() -> None:
    (data,), odd = convert(encode(photo(5), "PNG"), "n01_2.JPEG", [64], 95)
    assert odd == ("PNG named .JPEG",)
    assert data[:2] == b"\xff\xd8"


def test_exif_orientation_is_ignored_and_dropped() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    (data,), _ = convert(encode(photo(6, 80, 60), exif=exif), "a.JPEG", [30], 90)
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
        convert(data, "a.JPEG", [64], 90)


def test_what_the_installation_lacks_is_not_taken_for_a_broken_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trainer.data.making.restart_markers", None)
    _load_decoders.cache_clear()
    with pytest.raises(ImportError):
        convert(encode(photo(1)), "a.JPEG", [32], 90)
