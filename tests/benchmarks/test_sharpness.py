"""The images of every recipe that names an accuracy are as sharp as torchvision's crops of the originals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import functional

from benchmarks import photographs
from benchmarks.copies import BATCH, Choice, Prepared, measured, of_originals
from benchmarks.sharpness import SHARPNESS, STATISTICS, distances, ratios, statistics_of
from trainer.data.format import Copies, read_index
from trainer.data.making.prepare import prepare
from trainer.data.reading.decode import center_into
from trainer.prepare import Options
from trainer.recipes.config import DataConfig
from trainer.recipes.named import PROMISES, RECIPES
from trainer.setup import Data
from trainer.store import open_store

EPOCHS = 1
# Their means over those of originals. Copies store colour at half the resolution, and a JPEG loses the faintest detail
# first. What was measured is in benchmarks/results/copies.json.
LEAST = {
    "gradient": 0.96, "steep_gradient": 0.95, "laplacian": 0.93, "middle_power": 0.97, "high_power": 0.87,
    "colour_gradient": 0.7,
}  # fmt: skip
SHARE = 0.025  # by which the other six statistics may differ
DISTANCE = 1.36 * (2 / (EPOCHS * BATCH)) ** 0.5  # of Kolmogorov and Smirnov: 5 % of pairs of samples differ more
COLOUR = "colour_gradient"


@pytest.fixture(scope="module")
def originals() -> list[bytes]:
    """In ImageNet's sizes and encodings."""
    return [photographs.photograph(("sklearn",), 0, 0, number) for number in range(BATCH)]


@pytest.fixture(scope="module")
def folder(originals: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as `make prepare` stores them."""
    root = tmp_path_factory.mktemp("sharpness")
    for split, jpegs in (("train", originals), ("val", originals[::4])):
        (root / "images" / split / "class").mkdir(parents=True)
        for number, jpeg in enumerate(jpegs):
            (root / "images" / split / "class" / f"{number:02}.JPEG").write_bytes(jpeg)
    options = Options(data="", store="")
    copies = Copies(options.train_sides, options.val_sides, options.quality)
    return root / prepare(str(root / "images"), open_store(str(root)), copies).prefix


Compared = tuple[Mapping[str, float], Mapping[str, float]]  # ratios, distances
Compare = Callable[[DataConfig, int], Compared]


@pytest.fixture(scope="module")
def compare(folder: Path, originals: list[bytes]) -> Compare:
    files = [Image.open(BytesIO(jpeg)).convert("RGB") for jpeg in originals]

    @cache
    def compared(data: DataConfig, pixels: int) -> Compared:
        choice = Choice("", data.train_sides, per_crop=data.copy_per_crop)
        prepared = Prepared(choice, pixels, Data(folder, read_index(folder), data))
        ours, theirs = measured(prepared.batches(EPOCHS)), measured(of_originals(files, prepared, EPOCHS))
        return ratios(ours, theirs), distances(ours, theirs)

    return compared


def lacks(compared: Compared) -> list[str]:
    """What differs more than it may."""
    ratio, distance = compared
    found = [name for name in SHARPNESS if ratio[name] < LEAST[name] or ratio[name] > 1.02]
    found += [name for name in STATISTICS if name not in SHARPNESS and abs(ratio[name] - 1) > SHARE]
    return found + [f"distance of {name}" for name in STATISTICS if name != COLOUR and distance[name] > DISTANCE]


def plain(data: DataConfig) -> DataConfig:
    """What decides about the sharpness of a crop, and no more: recipes share it."""
    return DataConfig(
        crop_scale=data.crop_scale, crop_ratio=data.crop_ratio, train_sides=data.train_sides,
        copy_per_crop=data.copy_per_crop,
    )  # fmt: skip


@pytest.mark.parametrize("recipe", PROMISES)
def test_training_images_are_as_sharp_as_crops_of_the_originals(recipe: str, compare: Compare) -> None:
    config = RECIPES[recipe]()
    for pixels in {min(config.resolutions()), max(config.resolutions())}:
        found = compare(plain(config.data), pixels)
        assert not lacks(found), (pixels, found)


def test_one_copy_for_all_crops_would_not_do(compare: Compare) -> None:
    one = replace(plain(RECIPES["mild"]().data), copy_per_crop=False)
    found = compare(one, 176)
    assert {"gradient", "high_power"} <= set(lacks(found))


@pytest.mark.parametrize(
    ("resize", "crop"),
    sorted({(data.val_resize, data.val_crop) for data in (RECIPES[name]().data for name in PROMISES)}),
)
def test_validation_images_are_as_sharp_as_those_of_the_originals(
    resize: int, crop: int, folder: Path, originals: list[bytes]
) -> None:
    data = replace(RECIPES["mild"]().data, val_resize=resize, val_crop=crop)
    split = Data(folder, read_index(folder), data).open("val", resize)
    images = [Image.open(BytesIO(jpeg)).convert("RGB") for jpeg in originals[::4]]
    crops = [functional.center_crop(functional.resize(image, [resize]), [crop]) for image in images]
    theirs = np.stack([np.asarray(cut) for cut in crops])
    ours = np.empty_like(theirs)
    for number in range(len(split)):
        center_into(ours[number], split.jpeg(number), resize)
    ratio = ratios(statistics_of(ours), statistics_of(theirs))
    assert ratio["gradient"] > 0.95, ratio
    assert ratio["high_power"] > 0.85, ratio
