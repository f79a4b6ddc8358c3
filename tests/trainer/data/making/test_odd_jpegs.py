"""JPEGs of rare kinds: each is stored so that training decodes it, or named and left out. None is found out later."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.images import decode, encode, image_folder, open_split, photo, prepared
from trainer.data.making.convert import BrokenImageError, convert
from trainer.data.reading.decode import center_into, crop_into, image_size

WIDTH, HEIGHT = 96, 64


def segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(content) + 2).to_bytes(2, "big") + content


def find(jpeg: bytes, marker: int) -> int:
    at = 2
    while jpeg[at + 1] != marker:
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return at


def resampled(jpeg: bytes, factors: int, width: int, height: int) -> bytes:
    """The blocks of a 4:2:0 JPEG read as another kind with four blocks of luma: 0x14 is 4:4:1, 0x41 is 4:1:1."""
    at, body = find(jpeg, 0xC0), bytearray(jpeg)
    body[at + 5 : at + 9] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    body[at + 11] = factors
    return bytes(body)


def with_ids(jpeg: bytes, ids: bytes) -> bytes:
    frame, scan, body = find(jpeg, 0xC0), find(jpeg, 0xDA), bytearray(jpeg)
    for i, number in enumerate(ids):
        body[frame + 10 + 3 * i] = body[scan + 5 + 2 * i] = number
    return bytes(body)


BASE = encode(photo(3, WIDTH, HEIGHT), quality=90, subsampling="4:2:0")
GREY = encode(photo(3, WIDTH, HEIGHT).convert("L"), quality=90)
BARE = BASE[:2] + BASE[20:]  # without JFIF's segment
ADOBE = [segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes((transform,))) for transform in range(3)]
FRAME = find(BASE, 0xC0)
KINDS = {
    "4:4:1": resampled(BASE, 0x14, WIDTH // 2, 2 * HEIGHT),
    "4:1:1": resampled(BASE, 0x41, 2 * WIDTH, HEIGHT // 2),
    "4:4:1, cut short": resampled(BASE, 0x14, WIDTH // 2, 2 * HEIGHT)[:-200],
    "4:4:1, more blocks than a row has": resampled(BASE, 0x14, WIDTH, 2 * HEIGHT),
    "restart markers": encode(photo(3, WIDTH, HEIGHT), restart_marker_blocks=7),
    "restart markers by rows": encode(photo(3, WIDTH, HEIGHT), restart_marker_rows=1),
    "progressive": encode(photo(3, WIDTH, HEIGHT), progressive=True),
    "optimised tables": encode(photo(3, WIDTH, HEIGHT), optimize=True),
    "quality 1": encode(photo(3, WIDTH, HEIGHT), quality=1),
    "components RGB, JFIF": with_ids(BASE, b"RGB"),
    "components RGB, no JFIF": with_ids(BARE, b"RGB"),
    "components 1 34 35": with_ids(BARE, bytes((1, 34, 35))),
    "no JFIF": BARE,
    "Adobe RGB": BARE[:2] + ADOBE[0] + BARE[2:],
    "Adobe YCCK with three components": BARE[:2] + ADOBE[2] + BARE[2:],
    "two Adobes": BARE[:2] + ADOBE[1] + ADOBE[0] + BARE[2:],
    "JFIF and Adobe RGB": BASE[:20] + ADOBE[0] + BASE[20:],
    "fill bytes": BASE[:2] + b"\xff\xff" + BASE[2:],
    "a comment with markers": BASE[:2] + segment(0xFE, b"\xff\xd9\xff\xc0\xff\xda") + BASE[2:],
    "restart interval 0": BASE[:20] + segment(0xDD, bytes(2)) + BASE[20:],
    "restart interval without markers": BASE[:20] + segment(0xDD, b"\0\5") + BASE[20:],
    "more rows than it says": BASE[: FRAME + 5] + (HEIGHT - 32).to_bytes(2, "big") + BASE[FRAME + 7 :],
    "fewer rows than it says": BASE[: FRAME + 5] + (HEIGHT + 32).to_bytes(2, "big") + BASE[FRAME + 7 :],
    "height 0": BASE[: FRAME + 5] + bytes(2) + BASE[FRAME + 7 :],
    "no end": BASE[:-2],
    "two ends": BASE + BASE[-2:],
    "zeros after the end": BASE + bytes(100),
    "another JPEG after the end": BASE + GREY,
    "zeros before the end": BASE[:-2] + bytes(3) + BASE[-2:],
    "a marker before the end": BASE[:-2] + b"\xff\xd0" + BASE[-2:],
    "a line before the start": b"\n" + BASE,
    "grey with factors 2x2": GREY[: find(GREY, 0xC0) + 11] + b"\x22" + GREY[find(GREY, 0xC0) + 12 :],
    "12 bits": BASE[: FRAME + 4] + b"\x0c" + BASE[FRAME + 5 :],
    "one pixel": encode(photo(3, 1, 1)),
    "a line of pixels": encode(photo(3, 3000, 1)),
} | {f"{count} bytes lost": BASE[: len(BASE) // 2] + BASE[len(BASE) // 2 + count :] for count in (1, 2, 7, 40)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sides", [(4096,), (48, 24)], ids=["kept", "shrunk"])
@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # of Pillow, about what is odd
def test_every_copy_of_an_image_that_is_accepted_is_one_that_training_decodes(
    kind: str, sides: tuple[int, ...]
) -> None:
    try:
        whole = decode(KINDS[kind])
    except OSError:  # Pillow refuses it
        with pytest.raises(BrokenImageError) as error:
            convert(KINDS[kind], "a.JPEG", sides, 95)
        assert "object at" not in str(error.value)
        return
    copies, odd = convert(KINDS[kind], "a.JPEG", sides, 95)
    for side, copy in zip(sides, copies, strict=True):
        jpeg, pixels = np.frombuffer(copy, np.uint8), decode(copy)
        width, height = image_size(jpeg)
        assert (height, width, 3) == pixels.shape
        assert min(height, width) == min(side, *whole.shape[:2])
        if side == 4096:
            difference = np.abs(pixels.astype(int) - whole)
            assert difference.mean() < 2.5 if odd else not difference.any()
        center_into(np.empty((32, 32, 3), np.uint8), jpeg, 32)
        for box in ((0, 0, 1, 1), (width - 1, height - 1, 1, 1), (width // 3, height // 3, width // 2, height // 2)):
            left, top, *size = (max(number, least) for number, least in zip(box, (0, 0, 1, 1), strict=True))
            out = np.empty((size[1], size[0], 3), np.uint8)
            crop_into(out, jpeg, (left, top, size[0], size[1]))
            expected = pixels[top : top + size[1], left : left + size[0]].astype(int)
            assert np.abs(out - expected).max() <= 1


def test_a_jpeg_that_training_cannot_decode_is_encoded_again_and_counted(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A lossless rotation makes 4:4:1 of 4:1:1. Such an image was stored as it is, and ended every training."""
    rotated = KINDS["4:4:1"]
    with pytest.raises(ValueError, match="headers"):
        image_size(np.frombuffer(rotated, np.uint8))
    data = image_folder(tmp_path / "data", classes=("cat", "dog"), train=1, val=1)
    for split in ("train", "val"):
        (data / split / "cat" / "rotated.JPEG").write_bytes(rotated)
    result = prepared(data, tmp_path, side=4096)
    assert "seen: 2 unusual JPEG" in capfd.readouterr().err
    for split in ("train", "val"):
        images = open_split(tmp_path, result, split, 4096)
        assert [image_size(images.jpeg(i)) for i in range(3)] == [(48, 40), (WIDTH // 2, 2 * HEIGHT), (48, 40)]


def test_an_image_that_is_too_long_for_a_jpeg_is_shrunk_until_it_fits() -> None:
    wide = photo(1, 70_000, 48)
    (large, small), odd = convert(encode(wide, "PNG", compress_level=1), "a.png", (64, 12), 90)
    assert odd == ("PNG",)
    assert image_size(np.frombuffer(large, np.uint8)) == (65_500, 44)
    assert image_size(np.frombuffer(small, np.uint8)) == (70_000 * 12 // 48, 12)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>404</html>", "it is a web page"),
        (b"<html>404</html>", "it is a web page"),
        (b"not an image", "its bytes begin as none of JPEG, PNG, BMP"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 10\n%%EndComments\nshowpage\n", "as none of JPEG, PNG, BMP"),
    ],
)
def test_what_is_no_image_is_told_as_what_it_is_and_always_in_the_same_words(data: bytes, said: str) -> None:
    with pytest.raises(BrokenImageError, match=said) as first:
        convert(data, "a.JPEG", [64], 90)
    with pytest.raises(BrokenImageError) as second:
        convert(bytes(bytearray(data)), "a.JPEG", [64], 90)
    assert str(first.value) == str(second.value)
