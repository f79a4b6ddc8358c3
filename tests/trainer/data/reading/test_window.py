"""Windows cut out of JPEGs: smaller files with the same pixels, bit for bit, judged by two decoders."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from tests.images import encode, photo
from trainer.data.reading.window import Box, Window, cut

SIZES = [(341, 256), (256, 341), (170, 128), (97, 61), (16, 16), (17, 33), (8, 200), (500, 9)]


def as_bytes(image: Image.Image, **options: Any) -> np.ndarray:
    return np.frombuffer(encode(image, quality=90, **options), np.uint8)


def boxes(width: int, height: int, count: int = 12) -> list[Box]:
    """Corners, single pixels, everything, and random boxes."""
    rng, found = (
        np.random.default_rng(width * height),
        [(0, 0, width, height), (0, 0, 1, 1), (width - 1, height - 1, 1, 1)],
    )
    for _ in range(count):
        w, h = int(rng.integers(1, width + 1)), int(rng.integers(1, height + 1))
        found.append((int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1)), w, h))
    return found


def window_of(jpeg: np.ndarray, box: Box) -> Window:
    return cut(jpeg, box, np.full(len(jpeg), 0xAB, np.uint8))


def assert_the_same_pixels(jpeg: np.ndarray, box: Box) -> Window:
    window = window_of(jpeg, box)
    left, top, width, height = box
    full = np.asarray(Image.open(io.BytesIO(jpeg.tobytes())).convert("RGB"))
    found = simplejpeg.decode_jpeg(window.jpeg, "RGB", strict=window.whole)
    inside = found[window.top : window.top + height, window.left : window.left + width]
    assert np.array_equal(inside, full[top : top + height, left : left + width]), (full.shape, box)
    return window


@pytest.mark.parametrize("interval", [1, 2, 3])
@pytest.mark.parametrize("subsampling", ["4:2:0", "4:2:2", "4:4:4"])
def test_a_window_has_the_pixels_of_the_whole_image(subsampling: str, interval: int) -> None:
    for i, (width, height) in enumerate(SIZES):
        jpeg = as_bytes(photo(i, width, height), subsampling=subsampling, restart_marker_blocks=interval)
        for box in boxes(width, height):
            assert_the_same_pixels(jpeg, box)


def test_grey_images_and_whole_rows_as_intervals_are_cut_too() -> None:
    for image, options in (
        (photo(1, 200, 150).convert("L"), {"restart_marker_blocks": 1}),
        (photo(2, 200, 150), {"restart_marker_rows": 1}),
        (photo(3, 200, 150).convert("L"), {}),
    ):
        jpeg = as_bytes(image, **options)
        windows = [assert_the_same_pixels(jpeg, box) for box in boxes(200, 150)]
        assert sum(window.jpeg is not jpeg for window in windows) > 5


def test_a_small_box_of_a_prepared_image_takes_a_small_part_of_its_bytes() -> None:
    """One MCU of 16 x 22 and the headers; a box that touches a border between MCUs needs those beyond it."""
    jpeg = as_bytes(photo(4, 341, 256), subsampling="4:2:0", restart_marker_blocks=1)
    inside, across = window_of(jpeg, (33, 33, 14, 14)), window_of(jpeg, (32, 33, 14, 14))
    assert Image.open(io.BytesIO(inside.jpeg.tobytes())).size == (16, 16)
    assert (inside.left, inside.top, inside.whole) == (1, 1, True)
    assert Image.open(io.BytesIO(across.jpeg.tobytes())).size == (32, 16)
    assert len(inside.jpeg) < len(across.jpeg) < 0.1 * len(jpeg)


def test_without_markers_the_rows_below_the_box_are_left_to_the_decoder_to_skip() -> None:
    jpeg = as_bytes(photo(5, 341, 256), subsampling="4:2:0")
    window = assert_the_same_pixels(jpeg, (100, 20, 50, 40))
    assert Image.open(io.BytesIO(window.jpeg.tobytes())).size == (341, 64)
    assert not window.whole
    assert assert_the_same_pixels(jpeg, (0, 200, 50, 56)).jpeg is jpeg


@pytest.mark.parametrize("kind", ["progressive", "CMYK with markers", "intervals across rows"])
def test_what_cannot_be_cut_comes_back_as_it_is(kind: str) -> None:
    image = photo(6, 200, 150)  # 13 MCUs in a row
    jpeg = {
        "progressive": lambda: as_bytes(image, progressive=True, restart_marker_blocks=1),
        "CMYK with markers": lambda: as_bytes(image.convert("CMYK"), progressive=True),
        "intervals across rows": lambda: as_bytes(image, subsampling="4:2:0", restart_marker_blocks=4),
    }[kind]()
    window = window_of(jpeg, (20, 30, 40, 50))
    assert window == Window(jpeg, 20, 30, True)
    assert window.jpeg is jpeg


def test_a_lost_or_extra_marker_leaves_the_judgement_to_the_decoder() -> None:
    jpeg = as_bytes(photo(7, 100, 100), subsampling="4:2:0", restart_marker_blocks=1)
    body = jpeg.tobytes()
    at = body.index(b"\xff\xd3")
    for damaged in (
        body[:at] + body[at + 2 :],
        body[:at] + b"\xff\xd3" + body[at:],
        body[:-2],
        body[:at],
        body + b"\0",
    ):
        window = window_of(np.frombuffer(damaged, np.uint8), (20, 20, 10, 10))
        assert window.jpeg.tobytes() == damaged


def test_headers_that_other_decoders_read_differently_are_left_to_the_decoder() -> None:
    """Fill bytes before a marker are legal, and hide what follows from a reader that takes them for a marker."""
    jpeg = as_bytes(photo(8, 90, 70), restart_marker_blocks=1).tobytes()
    filled = np.frombuffer(jpeg[:2] + b"\xff" + jpeg[2:], np.uint8)
    assert Image.open(io.BytesIO(filled.tobytes())).size == (90, 70)
    assert window_of(filled, (10, 10, 20, 20)).jpeg is filled


FUZZ = """
import numpy as np
from tests.trainer.data.reading.test_window import as_bytes, photo
from trainer.data.reading.decode import image_size
from trainer.data.reading.window import cut

rng = np.random.default_rng(0)
jpegs = [
    as_bytes(photo(8, 90, 70), subsampling="4:2:0", restart_marker_blocks=1),
    as_bytes(photo(9, 90, 70)),
    as_bytes(photo(10, 40, 30), restart_marker_rows=1),
]
cuts = 0
for trial in range(20000):
    jpeg = jpegs[trial % 3].copy()
    reach = 700 if rng.random() < 0.7 else len(jpeg)
    for _ in range(rng.integers(1, 4)):
        jpeg[rng.integers(0, reach)] = rng.choice((0, 1, 255, 0xC0, 0xD0, 0xDA, 0xDD, 0xE1, rng.integers(256)))
    jpeg = jpeg[: rng.integers(1, len(jpeg))] if rng.random() < 0.3 else jpeg
    box = (10, 10, 20, 20)
    try:
        width, height = image_size(jpeg)
        box = tuple(int(rng.integers(low, high)) for low, high in ((0, width), (0, height), (1, 99), (1, 99)))
    except ValueError:
        pass
    fence = np.full(len(jpeg) + 4096, 0xAB, np.uint8)
    window = cut(jpeg, box, fence[: len(jpeg)])
    assert (fence[len(jpeg) :] == 0xAB).all()
    cuts += window.jpeg is not jpeg
print(cuts)
"""


@pytest.mark.slow
def test_no_damage_to_the_bytes_reaches_beyond_them(tmp_path: Path) -> None:
    """The compiled code does not check its indices; here it does, and is shot at."""
    environ = {**os.environ, "NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", FUZZ], env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 500
