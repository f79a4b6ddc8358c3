"""Several pictures of an image: those of torchvision, each from one decoded image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms import CenterCrop, Compose, FiveCrop, InterpolationMode, Resize

from tests.images import photo
from tests.trainer.data.reading.test_decode import SIZES, as_bytes, assert_close, pil, pixels
from trainer.data.jpeg import Bytes
from trainer.data.reading import decode
from trainer.data.reading.decode import CropPlace, Picture, ResizeMode, center_into, pictures_into
from trainer.data.reading.loader import Loader, picture_jobs, pictures_of
from trainer.data.reading.split import PreparedSplit

FIVE: tuple[CropPlace, ...] = ("top-left", "top-right", "bottom-left", "bottom-right", "centre")
MODES: tuple[ResizeMode, ...] = ("bilinear", "bicubic")


def assert_like_pil(found: np.ndarray, expected: object, mode: ResizeMode, what: object) -> None:
    """The bicubic filter has negative weights: a level between the two directions may become two, in few values."""
    if mode == "bilinear":
        assert_close(found, expected, what)
        return
    errors = np.abs(found.astype(int) - np.asarray(expected))
    assert errors.max() <= 2, what
    assert (errors == 2).sum() <= max(1, 5e-5 * errors.size), what
    assert errors.mean() < 0.02, what


@pytest.mark.parametrize(("resize", "crop"), [(232, 224), (256, 224), (33, 32), (32, 32)])
def test_the_bicubic_centre_is_that_of_torchvision_and_pil(resize: int, crop: int) -> None:
    reference = Compose([Resize(resize, InterpolationMode.BICUBIC), CenterCrop(crop)])
    for number, (width, height) in enumerate(SIZES):
        if max(width, height) * resize / min(width, height) > 6000:
            continue  # slow, and no other case
        jpeg, out = as_bytes(photo(number, width, height)), pixels(crop)
        center_into(out, jpeg, resize, "bicubic")
        assert_like_pil(out, reference(pil(jpeg)), "bicubic", (width, height))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("resize", "crop"), [(48, 32), (33, 32), (32, 32)])
def test_five_crops_are_those_of_torchvision(resize: int, crop: int, mode: ResizeMode) -> None:
    reference = Compose([Resize(resize, InterpolationMode(mode)), FiveCrop(crop)])
    for number, size in enumerate([(500, 375), (375, 500), (64, 64), (61, 90), (7, 5)]):
        jpeg, outs = as_bytes(photo(number, *size)), [pixels(crop) for _ in FIVE]
        pictures_into(outs, jpeg, [Picture(resize, crop, place, mode) for place in FIVE])
        for place, found, expected in zip(FIVE, outs, reference(pil(jpeg)), strict=True):
            assert_like_pil(found, expected, mode, (size, place))


def test_pictures_of_several_sizes_and_filters_are_those_that_each_would_be_alone() -> None:
    pictures = [
        Picture(40, 32), Picture(40, 24, "top-left"), Picture(64, 64), Picture(64, 64, mode="bicubic"), Picture(40, 32)
    ]  # fmt: skip
    jpeg, outs = as_bytes(photo(1, 90, 70)), [pixels(picture.crop) for picture in pictures]
    pictures_into(outs, jpeg, pictures)
    for picture, out in zip(pictures, outs, strict=True):
        alone = pixels(picture.crop)
        pictures_into([alone], jpeg, [picture])
        assert (out == alone).all()
    assert (outs[2] != outs[3]).any()
    assert (outs[0] == outs[4]).all()


def test_the_loader_gives_every_picture_of_an_image_that_it_decodes_once(
    val_split: PreparedSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, resized = list[int](), list[int]()
    decode_once, resize_once = decode._decode, decode._resized

    def count_decoding(jpeg: Bytes, *, strict: bool) -> np.ndarray:
        decoded.append(len(jpeg))
        return decode_once(jpeg, strict=strict)

    def count_resizing(image: np.ndarray, resize: int, mode: ResizeMode) -> np.ndarray:
        resized.append(resize)
        return resize_once(image, resize, mode)

    monkeypatch.setattr(decode, "_decode", count_decoding)
    monkeypatch.setattr(decode, "_resized", count_resizing)
    pictures = [*(Picture(40, 32, place) for place in FIVE), Picture(48, 48, mode="bicubic")]
    jobs, found = picture_jobs(4, val_split, pictures, rank=0, world=1), list[list[np.ndarray]]()
    with Loader(
        jobs, max_images=4, image_bytes=sum(one.bytes for one in pictures), workers=2, device=torch.device("cpu")
    ) as loader:
        for batch in loader:
            parts = [part.numpy().copy() for part in pictures_of(batch.images, pictures)]
            found += [[part[row] for part in parts] for row in range(len(batch.labels))]
    assert len(decoded) == len(found) == len(val_split) == 15
    assert sorted(resized) == [40] * 15 + [48] * 15
    for image, shown in enumerate(found):
        outs = [pixels(picture.crop) for picture in pictures]
        pictures_into(outs, val_split.jpeg(image), pictures)
        assert all((one == out).all() for one, out in zip(shown, outs, strict=True))


def test_parts_are_the_memory_of_the_rows() -> None:
    pictures = [Picture(2, 2), Picture(3, 3)]
    rows = np.zeros((1, 12 + 27), np.uint8)
    first, second = pictures_of(rows, pictures)
    first[:], second[:] = 1, 2
    assert rows[0].tolist() == [1] * 12 + [2] * 27
