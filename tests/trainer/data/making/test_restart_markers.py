"""Restart markers added to JPEGs: the same pixels, bit for bit, judged by two decoders; what cannot be done is left."""

from __future__ import annotations

import io
import re
import tracemalloc
from typing import Any

import numpy as np
import pytest
import simplejpeg
from numba import njit
from PIL import Image

from tests.images import decode, encode, photo
from trainer.data.making import restart_markers
from trainer.data.making.restart_markers import add_markers
from trainer.data.reading.window import cut

SIZES = [(1, 1), (8, 8), (17, 33), (33, 17), (120, 90), (500, 375), (13 * 16, 40), (13 * 8, 20), (9, 300)]


def noise(seed: int, width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def assert_the_same_pixels(jpeg: bytes, marked: bytes | None) -> bytes:
    assert marked is not None
    first, second = (Image.open(io.BytesIO(data)) for data in (jpeg, marked))
    assert first.mode == second.mode
    assert np.array_equal(np.asarray(first), np.asarray(second))
    if first.mode != "CMYK":
        assert np.array_equal(simplejpeg.decode_jpeg(jpeg, "RGB"), simplejpeg.decode_jpeg(marked, "RGB"))
    return marked


def interval_and_markers(jpeg: bytes) -> tuple[int, list[int]]:
    at = jpeg.index(b"\xff\xdd\0\4")
    return int.from_bytes(jpeg[at + 4 : at + 6]), [mark[1] & 7 for mark in re.findall(rb"\xff[\xd0-\xd7]", jpeg)]


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "grey"])
@pytest.mark.parametrize("make", [photo, noise])
def test_marked_jpegs_have_the_pixels_of_the_original(make: type, subsampling: str) -> None:
    for i, (width, height) in enumerate(SIZES):
        for quality in (30, 75, 90, 98):
            image: Image.Image = make(i, width, height)
            options = {} if subsampling == "grey" else {"subsampling": subsampling}
            jpeg = encode(image.convert("L") if subsampling == "grey" else image, quality=quality, **options)
            assert_the_same_pixels(jpeg, add_markers(jpeg))


@pytest.mark.parametrize(
    ("width", "per_row", "interval"),
    [(16, 1, 1), (32, 2, 2), (48, 3, 3), (64, 4, 4), (80, 5, 1), (96, 6, 3), (160, 10, 2), (192, 12, 4), (203, 13, 1)],
)
def test_intervals_divide_a_row_and_their_markers_count_to_eight(width: int, per_row: int, interval: int) -> None:
    jpeg = encode(photo(1, width, 60), subsampling="4:2:0")
    found, numbers = interval_and_markers(assert_the_same_pixels(jpeg, add_markers(jpeg)))
    assert found == interval
    assert numbers == [i % 8 for i in range(4 * per_row // interval - 1)]


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_a_window_is_cut_out_of_it_with_fewer_bytes_and_the_same_pixels(subsampling: str) -> None:
    jpeg = encode(photo(2, 160, 120), quality=92, subsampling=subsampling)
    marked = np.frombuffer(add_markers(jpeg) or b"", np.uint8)
    for left, top, width, height in ((0, 0, 160, 120), (0, 0, 1, 1), (70, 50, 30, 20), (99, 1, 61, 119)):
        window = cut(marked, (left, top, width, height), np.empty(len(marked), np.uint8))
        pixels = simplejpeg.decode_jpeg(window.jpeg, "RGB")
        found = pixels[window.top : window.top + height, window.left : window.left + width]
        assert np.array_equal(found, decode(jpeg)[top : top + height, left : left + width])
        assert width > 60 or len(window.jpeg) < 0.4 * len(marked)


def test_cmyk_and_odd_sampling_factors_are_marked_too() -> None:
    jpeg = encode(photo(3, 70, 50).convert("CMYK"), quality=90)
    assert_the_same_pixels(jpeg, add_markers(jpeg))
    upright = simplejpeg.encode_jpeg(np.array(photo(4, 70, 50)), 90, colorsubsampling="440")
    assert_the_same_pixels(upright, add_markers(upright))
    grey = bytearray(encode(photo(5, 70, 50).convert("L")))
    grey[grey.index(b"\xff\xc0") + 11] = 0x22  # one component alone is not subsampled, whatever this says
    assert_the_same_pixels(bytes(grey), add_markers(bytes(grey)))


def test_optimised_huffman_tables_are_kept_and_an_image_that_lacks_a_code_keeps_its_bytes() -> None:
    results = []
    for i in range(30):
        jpeg = encode(photo(i, 40 + 8 * i, 100), optimize=True)
        results.append(add_markers(jpeg))
        if results[-1] is not None:
            assert_the_same_pixels(jpeg, results[-1])
    assert None in results
    assert any(results)


def test_exif_profile_and_comment_are_dropped_but_what_tells_colours_is_kept() -> None:
    image, exif = photo(6, 64, 48), Image.Exif()
    exif[0x0112] = 6
    options: dict[str, Any] = {"exif": exif, "icc_profile": bytes(3000), "comment": "hello"}
    for jpeg in (encode(image, **options), encode(image, keep_rgb=True, subsampling="4:4:4", **options)):
        marked = assert_the_same_pixels(jpeg, add_markers(jpeg))
        assert b"Exif" not in marked
        assert len(marked) < len(jpeg) - 3000


@pytest.mark.parametrize(
    "jpeg",
    [
        b"",
        b"\xff\xd8",
        b"not a JPEG",
        encode(photo(7), progressive=True),
        encode(photo(7), restart_marker_blocks=1),
        encode(photo(7), restart_marker_rows=1),
        encode(photo(7), "PNG"),
        encode(photo(7)) + b"\0",
        encode(photo(7))[:-2],
        encode(photo(7))[:-40] + b"\xff\xd9",
        encode(photo(7))[:-2] + bytes(8) + b"\xff\xd9",
        encode(photo(7))[:-40] + b"\xff\xd3" + encode(photo(7))[-40:],
    ],
    ids=["empty", "start", "text", "progressive", "markers", "row markers", "PNG", "followed", "no end", "cut",
         "too long", "foreign marker"],
)  # fmt: skip
def test_what_cannot_be_marked_is_none(jpeg: bytes) -> None:
    assert add_markers(jpeg) is None


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled code with its indices checked, as it is not otherwise: it raises IndexError."""
    for name in ("_next_bits", "_put", "_copy", "_transcode"):  # what calls others is compiled after them
        monkeypatch.setattr(restart_markers, name, njit(boundscheck=True)(getattr(restart_markers, name).py_func))


@pytest.mark.slow
@pytest.mark.usefixtures("checked")
def test_any_damage_gives_none_or_the_pixels_that_a_decoder_makes_of_it() -> None:
    rng = np.random.default_rng(0)
    jpegs = [
        encode(photo(8, 90, 70), subsampling="4:2:0"),
        encode(photo(9, 64, 40), subsampling="4:4:4", quality=95),
        encode(photo(10, 40, 30).convert("L"), optimize=True),
    ]
    survived = 0
    for trial in range(3000):
        jpeg = bytearray(jpegs[trial % 3])
        headers = rng.random() < 0.5
        for _ in range(rng.integers(1, 4)):
            where = rng.integers(0, min(640, len(jpeg)) if headers else len(jpeg))
            jpeg[where] = rng.choice([0, 255, 0xD0, 0xDA, int(rng.integers(256))])
        data = bytes(jpeg[: rng.integers(0, len(jpeg))] if rng.random() < 0.1 else jpeg)
        marked = add_markers(data)
        try:
            pixels = simplejpeg.decode_jpeg(data, "RGB")
        except (ValueError, KeyError):
            continue
        if marked is not None:
            assert np.array_equal(simplejpeg.decode_jpeg(marked, "RGB"), pixels)
            survived += 1
    assert survived > 100


def from_bits(bits: str, side: int, dc: dict[int, int], ac: dict[int, int]) -> bytes:
    """A square JPEG of four components and these bits; `dc` and `ac` tell how long each symbol's code is, ascending."""

    def segment(marker: int, content: bytes) -> bytes:
        return bytes((0xFF, marker)) + (2 + len(content)).to_bytes(2) + content

    def table(kind: int, codes: dict[int, int]) -> bytes:
        lengths = list(codes.values())
        return segment(0xC4, bytes([kind, *(lengths.count(length) for length in range(1, 17)), *codes]))

    size = side.to_bytes(2)
    frame = segment(0xC0, b"\x08" + size + size + b"\4" + b"".join(bytes((i, 0x11, 0)) for i in range(4)))
    scan = segment(0xDA, b"\4" + b"".join(bytes((i, 0)) for i in range(4)) + b"\0\x3f\0")
    bits += "1" * (-len(bits) % 8)
    coded = int(bits, 2).to_bytes(len(bits) // 8).replace(b"\xff", b"\xff\0")
    quantisation = segment(0xDB, bytes([0, *[1] * 64]))
    return b"\xff\xd8" + quantisation + table(0, dc) + table(0x10, ac) + frame + scan + coded + b"\xff\xd9"


def test_an_image_that_claims_to_be_huge_costs_no_memory() -> None:
    jpeg = bytearray(encode(photo(11)))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = b"\xff" * 4  # 65535 x 65535
    add_markers(bytes(jpeg))  # fills the cached tables
    tracemalloc.start()
    try:
        assert add_markers(bytes(jpeg)) is None
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_intervals_are_padded_with_ones() -> None:
    jpeg = from_bits("010" * 4 * 5 * 5, 8 * 5, {0: 1}, {1: 1, 0: 2})
    marked = assert_the_same_pixels(jpeg, add_markers(jpeg))
    assert marked.count(bytes((0b01001001, 0b00101111, 0xFF))) == 25


@pytest.mark.slow
@pytest.mark.usefixtures("checked")
def test_bits_that_grow_as_much_as_they_can_fit_into_the_memory() -> None:
    """Two bits of every block become 28, almost all of them ones, which take a byte of stuffing each eight."""
    codes = {category: 1 + category for category in range(11)} | {15: 12, 14: 13, 13: 14, 12: 15, 11: 16}
    first, others = ("1" * 15 + "0" + "1" * 11 + "0") * 4, "00" * 4 * (13 * 13 - 1)
    jpeg = from_bits(first + others, 8 * 13, codes, {0: 1})
    marked = assert_the_same_pixels(jpeg, add_markers(jpeg))
    assert len(marked) > 10 * len(jpeg)


@pytest.mark.slow
@pytest.mark.usefixtures("checked")
def test_blocks_that_reach_far_beyond_the_end_are_read_from_the_padding() -> None:
    """Zeros, as the padding is, are here the longest difference and 63 of the longest coefficients."""
    block = "0" * (16 + 11) + "0" * 63 * (16 + 10)
    assert add_markers(from_bits(4 * block, 8, {11: 16}, {10: 16})) is not None
    for missing in range(8, len(block), 8):
        assert add_markers(from_bits((4 * block)[:-missing], 8, {11: 16}, {10: 16})) is None
