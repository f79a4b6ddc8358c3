"""The sets of images that all contenders train on, as image folders, and the settings that all of them share."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.photographs import PHOTOGRAPHS, source_files, source_pixels

PATCH = 112  # pixels of a side of a patch, which is to these trainings what an original is to ImageNet's
LEAST_BLOCK = 150  # a photograph is cut into blocks of at least so many pixels a side; a patch lies in one of them
TWIN = "motorcycle_right"  # the scene of motorcycle_left once more
DIGIT_PIXELS = 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all contenders do with one set of images."""

    images: str  # photographs or digits
    train: int  # images of the training split, a multiple of the batch
    val: int
    pixels: int  # of a training image
    resize: int  # of a validation image, before the centre crop of `pixels`
    original: int  # pixels of a side of an image in the folder
    epochs: int
    batch: int
    peak_lr: float
    mixed: bool = False  # mixup .2 or cutmix 1 on each batch, after TrivialAugment
    network: str = "resnet18"
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    momentum: float = 0.9
    weight_decay: float = 5e-4  # of weights, not of norms and biases
    smoothing: float = 0.1
    mixup_alpha: float = 0.2
    cutmix_alpha: float = 1.0

    @property
    def steps(self) -> int:
        return self.epochs * (self.train // self.batch)


DIGITS = Settings(
    images="digits", train=1408, val=389, pixels=32, resize=32, original=DIGIT_PIXELS, epochs=3, batch=64, peak_lr=0.1,
    crop_scale=(0.5, 1.0), flip=0.0,
)  # fmt: skip
SETS = {
    "photographs": Settings(
        images="photographs", train=1080, val=900, pixels=64, resize=73, original=PATCH, epochs=8, batch=60,
        peak_lr=0.1,
    ),
    "digits": DIGITS,
    "digits-mixed": replace(DIGITS, epochs=6, mixed=True),
}  # fmt: skip


def tiny(settings: Settings) -> Settings:
    """To try every line in seconds. It measures nothing."""
    return replace(settings, train=36, val=36, batch=18, epochs=1)


def make_folder(settings: Settings, folder: Path) -> Path:
    """<folder>/{train,val}/<class>/<number>.jpg, a function of the settings alone. What is whole is kept."""
    done = folder / f"{settings.images}-{settings.train}-{settings.val}"
    if not done.exists():
        partial = done.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        (_write_photographs if settings.images == "photographs" else _write_digits)(settings, partial)
        train, val = (sorted(path.name for path in (partial / split).iterdir()) for split in ("train", "val"))
        assert train == val, f"the splits of {done.name} have other classes: {train}, {val}"
        partial.rename(done)
    return done


def blocks_of(width: int, height: int, split: str) -> list[tuple[int, int, int, int]]:
    """(left, top, right, bottom) of the blocks of a photograph that belong to a split: black or white of a chessboard.

    So no pixel of a validation image is in a training image.
    """
    columns, rows = max(1, width // LEAST_BLOCK), max(1, height // LEAST_BLOCK)
    x, y = np.linspace(0, width, columns + 1).astype(int), np.linspace(0, height, rows + 1).astype(int)
    wanted = 0 if split == "train" else 1
    return [
        (int(x[i]), int(y[j]), int(x[i + 1]), int(y[j + 1]))
        for i in range(columns)
        for j in range(rows)
        if (i + j) % 2 == wanted
    ]


def patches_of(width: int, height: int, split: str, count: int, seed: Sequence[int]) -> list[tuple[int, int]]:
    """(left, top) of so many patches of PATCH pixels a side, each anywhere in a block of the split."""
    rng, blocks = np.random.default_rng(seed), blocks_of(width, height, split)
    found = []
    for number in range(count):
        left, top, right, bottom = blocks[number % len(blocks)]
        found.append((int(rng.integers(left, right - PATCH + 1)), int(rng.integers(top, bottom - PATCH + 1))))
    return found


def _write_photographs(settings: Settings, folder: Path) -> None:
    packages = tuple(PHOTOGRAPHS)
    sources = [number for number, (name, _) in enumerate(source_files(packages)) if Path(name).stem != TWIN]
    for part, (split, images) in enumerate((("train", settings.train), ("val", settings.val))):
        for number in sources:
            source = source_pixels(packages, number)
            into = folder / split / Path(source_files(packages)[number][0]).stem
            into.mkdir(parents=True)
            for i, (left, top) in enumerate(
                patches_of(source.width, source.height, split, images // len(sources), (part, number))
            ):
                _save(source.crop((left, top, left + PATCH, top + PATCH)), into / f"{i:04}.jpg")


def _write_digits(settings: Settings, folder: Path) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    for split, chosen in (("train", slice(0, settings.train)), ("val", slice(settings.train, None))):
        for i, (pixels, label) in enumerate(zip(digits.images[chosen], digits.target[chosen], strict=True)):
            if split == "val" and i >= settings.val:
                break
            into = folder / split / str(label)
            into.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray((pixels * (255 / 16)).astype(np.uint8))
            _save(image.resize((DIGIT_PIXELS, DIGIT_PIXELS), Image.Resampling.BILINEAR).convert("RGB"),
                  into / f"{i:04}.jpg")  # fmt: skip


def _save(image: Image.Image, path: Path) -> None:
    image.save(path, "JPEG", quality=96, subsampling="4:4:4")
