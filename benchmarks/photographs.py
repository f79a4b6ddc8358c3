"""JPEG files like ImageNet's, made from the photographs that scikit-image and scikit-learn ship; or real files.

What ImageNet's files are was measured on 1,000 real ones, one per class: 468 x 401 and 109.6 kB on average, three
quarters of them 4:4:4 at quality 96. What came out here is stated in every result (`describe`).
"""

from __future__ import annotations

import io
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PHOTOGRAPHS = {
    "skimage": ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "motorcycle_right.png",
                "rocket.jpg", "retina.jpg", "hubble_deep_field.jpg"),
    "sklearn": ("china.jpg", "flower.jpg"),
}  # fmt: skip
FOLDERS = {"skimage": "data", "sklearn": "datasets/images"}
# Width and height, and their share: ImageNet's most frequent sizes, and larger ones for its long tail.
SIZES = (
    ((500, 375), 0.40), ((375, 500), 0.13), ((500, 333), 0.13), ((500, 500), 0.08), ((333, 500), 0.05),
    ((400, 300), 0.07), ((640, 480), 0.08), ((250, 188), 0.06),
)  # fmt: skip
CROP_SIDE = (0.6, 0.95)  # of the largest crop with the right shape that a photograph has
NOISE = (0.0, 6.7)  # of sensors: standard deviation in steps of 1/255, the same in all channels


@dataclass(frozen=True)
class Encoding:
    """How a share of the files is written."""

    share: float
    quality: tuple[int, int]  # uniform, both ends included
    subsampling: str  # "" = grey


ENCODINGS = (
    Encoding(0.76, (96, 96), "4:4:4"),
    Encoding(0.20, (75, 92), "4:2:0"),
    Encoding(0.02, (92, 92), "4:2:2"),
    Encoding(0.02, (90, 90), ""),
)


def make(folder: Path, train: int, val: int, seed: int = 0, packages: tuple[str, ...] = tuple(PHOTOGRAPHS)) -> Path:
    """Write `train` and `val` images as <split>/<photograph>/<number>.JPEG, by all cores. Returns the folder.

    An image depends on (seed, split, number) and on `packages`, which ship the photographs; a photograph is a class.
    """
    names = [Path(file).stem for file, _ in source_files(packages)]
    for split in ("train", "val"):
        for name in names:
            (folder / split / name).mkdir(parents=True)
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for part, (split, count) in enumerate((("train", train), ("val", val))):
            images = pool.map(partial(photograph, packages, seed, part), range(count), chunksize=16)
            for i, image in enumerate(images):
                (folder / split / names[i % len(names)] / f"{i:06}.JPEG").write_bytes(image)
    return folder


def photograph(packages: tuple[str, ...], seed: int, part: int, number: int) -> bytes:
    """One JPEG: a random crop of photograph `number` modulo their count, mirrored or not, resized, with faint noise."""
    rng = np.random.default_rng([seed, part, number])
    source = source_pixels(packages, number % len(source_files(packages)))
    if rng.random() < 0.5:
        source = source.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    width, height = SIZES[rng.choice(len(SIZES), p=[share for _, share in SIZES])][0]
    side = rng.uniform(*CROP_SIDE)
    crop_width = side * min(source.width, source.height * width / height)
    crop_height = crop_width * height / width
    left, top = rng.uniform(0, source.width - crop_width), rng.uniform(0, source.height - crop_height)
    box = (left, top, left + crop_width, top + crop_height)
    image = source.resize((width, height), Image.Resampling.LANCZOS, box=box)
    noise = rng.normal(0, rng.uniform(*NOISE), (height, width, 1))
    image = Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
    encoding = ENCODINGS[rng.choice(len(ENCODINGS), p=[encoding.share for encoding in ENCODINGS])]
    quality, encoded = int(rng.integers(*encoding.quality, endpoint=True)), io.BytesIO()
    if encoding.subsampling:
        image.save(encoded, "JPEG", quality=quality, subsampling=encoding.subsampling)
    else:
        image.convert("L").save(encoded, "JPEG", quality=quality)
    return encoded.getvalue()


def link(folder: Path, images: Path, train: int, val: int, seed: int = 0) -> Path:
    """The same layout with links to real JPEG files, drawn from anywhere below `images`. Returns the folder."""
    files = sorted(file.resolve() for file in images.rglob("*") if file.suffix.lower() in (".jpeg", ".jpg"))
    if len(files) < train + val:
        raise SystemExit(f"--images {images} has {len(files)} JPEG files: {train} + {val} are needed; lower --count")
    drawn = np.random.default_rng(seed).permutation(len(files))[: train + val]
    for split, chosen in (("train", drawn[:train]), ("val", drawn[train:])):
        (folder / split / "real").mkdir(parents=True)
        for i, file in enumerate(chosen):
            (folder / split / "real" / f"{i:06}.JPEG").symlink_to(files[file])
    return folder


def describe(files: list[Path]) -> dict[str, Any]:
    """What the files are: mean width, height and bytes; share of each mode and chroma subsampling."""
    widths, heights, kinds = [], [], dict[str, int]()
    for file in files:
        with Image.open(file) as image:
            widths.append(image.width)
            heights.append(image.height)
            kind = _subsampling(image)
        kinds[kind] = kinds.get(kind, 0) + 1
    return {
        "files": len(files),
        "mean_width": round(float(np.mean(widths)), 1),
        "mean_height": round(float(np.mean(heights)), 1),
        "mean_kb": round(float(np.mean([file.stat().st_size for file in files])) / 1e3, 1),
        "shares": {kind: round(count / len(files), 3) for kind, count in sorted(kinds.items())},
    }


def _subsampling(image: Image.Image) -> str:
    if image.mode != "RGB":
        return image.mode
    first = image.layer[0][1:3]  # type: ignore[attr-defined]  # sampling factors of luma; a JPEG has them
    return {(1, 1): "4:4:4", (2, 1): "4:2:2", (2, 2): "4:2:0", (1, 2): "4:4:0"}.get(first, str(first))


@cache
def source_files(packages: tuple[str, ...]) -> tuple[tuple[str, Path], ...]:
    from importlib.util import find_spec

    found = []
    for package in packages:
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise SystemExit(f"{package} is not installed here, it ships the photographs: use `make bench-data`")
        found += [(name, Path(spec.origin).parent / FOLDERS[package] / name) for name in PHOTOGRAPHS[package]]
    return tuple(found)


@cache
def source_pixels(packages: tuple[str, ...], number: int) -> Image.Image:
    with Image.open(source_files(packages)[number][1]) as image:
        return image.convert("RGB")
