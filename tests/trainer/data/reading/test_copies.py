"""Each crop from the smallest stored copy that has pixels enough: which copy that is, and that no other is touched."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.images import CLASSES, encode, photo
from tests.trainer.data.reading.loading import CONFIG, STEPS, load
from trainer.contract import UserError
from trainer.data.format import Copies, Index, Size, SplitIndex, read_index
from trainer.data.making.prepare import prepare
from trainer.data.reading.copies import find_crop, lack_of_pixels, likely_copies
from trainer.data.reading.decode import crop_into, image_size
from trainer.data.reading.loader import Job, train_jobs
from trainer.data.reading.order import CROP, CROP_DRAWS, draws, random_resized_crop
from trainer.data.reading.split import PreparedSplit
from trainer.data.stage import stage
from trainer.learning.schedule import Clock
from trainer.recipes.config import Config, DataConfig
from trainer.recipes.sides import wanted_spans
from trainer.setup import Data
from trainer.store import open_store

PIXELS, SIDES = 32, (160, 80, 40)
SHAPES = ((240, 180), (180, 240), (200, 200), (320, 160), (72, 54), (500, 170))  # width, height; one is small
IMAGES = 36
PER_CROP = replace(CONFIG.data, resolution=PIXELS, start_resolution=PIXELS, copy_per_crop=True, train_sides=SIDES)
CONFIG_PER_CROP = replace(CONFIG, data=PER_CROP)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> str:
    """36 images of training in three classes, one shape after the other, stored with three short sides."""
    root = tmp_path_factory.mktemp("copies")
    for name in CLASSES:
        for split, shapes in (("train", SHAPES * 2), ("val", SHAPES[:1])):
            folder = root / "images" / split / name
            folder.mkdir(parents=True)
            for number, shape in enumerate(shapes):
                (folder / f"{number:02}.JPEG").write_bytes(encode(photo(number, *shape)))
    return str(root / prepare(str(root / "images"), open_store(str(root)), Copies(SIDES, (40,))).prefix)


@pytest.fixture
def data(place: str) -> Data:
    return Data(Path(place), read_index(Path(place)), PER_CROP)


def crops(copies: tuple[PreparedSplit, ...], epochs: int = 20) -> Iterator[tuple[int, int, list[float]]]:
    """An image, the copy that is looked at first, and the draws of a crop."""
    images = np.arange(len(copies[0]))
    for epoch in range(epochs):
        uniform = draws(CROP, CONFIG.seed, epoch, images, CROP_DRAWS)[:, 1:]
        likely = likely_copies(copies, PIXELS, uniform, PER_CROP)
        yield from zip(images.tolist(), likely.tolist(), uniform.tolist(), strict=True)


def test_a_crop_is_read_from_the_smallest_copy_with_the_pixels_it_wants(data: Data) -> None:
    copies, wanted, read = data.copies("train", PIXELS), PIXELS * 8 / 7, set()
    assert [copy.short_side for copy in copies] == sorted(SIDES)
    for image, likely, uniform in crops(copies):
        jpeg, box = find_crop(copies, likely, image, PIXELS, uniform, PER_CROP)
        jpegs = [copy.jpeg(image) for copy in copies]
        number = next(n for n, other in enumerate(jpegs) if np.shares_memory(other, jpeg))
        scale, ratio = PER_CROP.crop_scale, PER_CROP.crop_ratio
        boxes = [random_resized_crop(uniform, *image_size(other), scale, ratio) for other in jpegs]
        shorter = [min(width, height) for _, _, width, height in boxes]
        assert box == boxes[number]
        assert shorter[number] >= wanted - 1 or shorter[number] == shorter[-1]  # a crop has whole pixels
        before = shorter[number - 1] if number else 0
        if before < shorter[number] * 0.6:  # else the original is small, or this crop just fits into one of the copies
            assert before < wanted + 2  # a pixel of the smallest copy is as wide as two
        read.add(number)
    assert read == {0, 1, 2}


def test_other_copies_are_hardly_ever_touched(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    copies, looks = data.copies("train", PIXELS), list[int]()
    look = PreparedSplit.jpeg

    def watched(self: PreparedSplit, i: int) -> np.ndarray:
        looks.append(i)
        return look(self, i)

    monkeypatch.setattr(PreparedSplit, "jpeg", watched)
    found = list(crops(copies))
    for image, likely, uniform in found:
        find_crop(copies, likely, image, PIXELS, uniform, PER_CROP)
    vain = {shape: sum(look % len(SHAPES) == i for look in looks) / 120 - 1 for i, shape in enumerate(SHAPES)}
    assert max(vain.values()) < 0.5
    assert max(vain[240, 180], vain[72, 54]) < 0.05  # of the likely shape


def jobs_of(data: Data, first_step: int = 0) -> Iterator[Job]:
    return train_jobs(
        CONFIG_PER_CROP, partial(data.copies, "train"), Clock.of(CONFIG_PER_CROP, IMAGES).resolution,
        images=IMAGES, rank=0, world=1, first_step=first_step, steps=STEPS,
    )  # fmt: skip


def test_batches_of_chosen_copies_are_those_of_their_crops_for_any_threads_and_from_any_step(data: Data) -> None:
    copies, per_epoch = data.copies("train", PIXELS), IMAGES // CONFIG.global_batch_size * 2
    batches, expected = load(jobs_of(data), workers=1), np.empty((PIXELS, PIXELS, 3), np.uint8)
    for number, (job, batch) in enumerate(zip(jobs_of(data), batches, strict=True)):
        uniform = draws(CROP, CONFIG.seed, number // per_epoch, job.indices, CROP_DRAWS)[:, 1:]
        likely = likely_copies(copies, PIXELS, uniform, PER_CROP).tolist()
        assert batch.labels.tolist() == copies[-1].labels[job.indices].tolist()
        for row, image in enumerate(job.indices.tolist()):
            crop_into(expected, *find_crop(copies, likely[row], image, PIXELS, uniform[row].tolist(), PER_CROP))
            assert (batch.images[row].numpy() == expected).all()
    for first_step, workers in ((0, 3), (5, 2)):
        others = load(jobs_of(data, first_step), workers=workers)
        for one, other in zip(batches[2 * first_step :], others, strict=True):
            assert (one.images == other.images).all()


@pytest.mark.parametrize(
    ("scale", "ratio", "sides"),
    [
        ((0.08, 1.0), (3 / 4, 4 / 3), {40, 80, 160}),
        ((0.3, 1.0), (3 / 4, 4 / 3), {40, 80}),
        ((0.9, 1.0), (1.0, 1.0), {40}),
    ],
)
def test_staging_brings_the_copies_that_crops_can_want_and_no_other(
    place: str, tmp_path: Path, scale: tuple[float, float], ratio: tuple[float, float], sides: set[int]
) -> None:
    config = replace(CONFIG, data=replace(PER_CROP, crop_scale=scale, crop_ratio=ratio))
    folder = tmp_path / "copy"
    shutil.copytree(place, folder)
    for side in set(SIDES) - sides:
        (folder / f"train-{side}px-00000.arrow").unlink()
    copies, wanted = Copies(SIDES, (40,)), wanted_spans(config)
    assert stage(str(folder), tmp_path / "scratch", copies, wanted) == folder
    data = Data(folder, read_index(folder), config.data)
    assert {copy.short_side for copy in data.copies("train", PIXELS)} == sides
    for side in sides:
        (folder / f"train-{side}px-00000.arrow").rename(tmp_path / "away")
        with pytest.raises(UserError, match=f"train-{side}px-00000.arrow is missing"):
            stage(str(folder), tmp_path / "scratch", copies, wanted)
        (tmp_path / "away").rename(folder / f"train-{side}px-00000.arrow")


def test_a_start_says_that_crops_are_enlarged_where_the_copies_are_smaller_than_the_recipe_wants() -> None:
    def index(*sides: int) -> Index:
        split = SplitIndex(1, tuple(Size(side, 90, ()) for side in sides))
        return Index("a", "b", CLASSES, {"train": split, "val": split}, "f")

    wants = replace(DataConfig(), copy_per_crop=True, train_sides=(480, 256, 128))
    config = Config(recipe="mild", data=wants)
    lack = lack_of_pixels(config, index(256, 128))
    assert "stored with 256 px at most, and mild wants 480" in lack
    assert "validation images are stored with 256 px at most, and mild wants 266" in lack
    assert "the accuracy that the recipe names" in lack
    assert 'make prepare ARGS="--train-sides 480 256 128 --val-sides 320"' in lack
    assert lack_of_pixels(config, index(480, 256, 128)) == lack_of_pixels(config, index(512)) == ""
    assert lack_of_pixels(Config(), index(256, 128)) == ""
    assert "the accuracy" not in lack_of_pixels(replace(config, recipe="folder"), index(256, 128))
    large = Config(data=DataConfig(resolution=320, start_resolution=320))
    assert "training images are stored with 256 px at most, and custom wants 320" in lack_of_pixels(
        large, index(256, 128)
    )
    small = replace(wants, resolution=64, start_resolution=64, crop_scale=(0.5, 1.0), val_resize=64, val_side=96)
    assert lack_of_pixels(replace(config, data=small), index(256, 128)) == ""  # no crop of them wants more
