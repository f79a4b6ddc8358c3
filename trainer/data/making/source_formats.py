"""What a source of images is, and two forms of it: the digits, and image folders. Parquet files are in `parquet`.

Listing and reading only: which form DATA= means, and whether its labels make sense, is decided in `sources`.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from trainer.contract import UserError
from trainer.text import show_name

Labels = npt.NDArray[np.int64]

IMAGE_ENDINGS = (".jpeg", ".jpg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
SPLITS = {"train": ("train",), "val": ("validation", "val")}  # our name: the names in folders and files
FORMS = (
    "digits | a Hugging Face id such as ILSVRC/imagenet-1k | a folder of parquet files (train-*.parquet, "
    "validation-*.parquet) | an image folder (train/<class>/*.JPEG, val/<class>/*.JPEG) | "
    "a prepared folder (index.json)"
)
DIGITS_SIDE = 32  # the scans are 8x8
DIGITS_VAL_EVERY = 5


@dataclass(frozen=True)
class Example:
    image: bytes  # as it is stored: JPEG, PNG, …
    label: int
    name: str  # for messages


class Split(Protocol):
    """Any thread may read any image. `labels` reads no image."""

    in_runs: ClassVar[bool]  # whether only consecutive images are read quickly

    @property
    def labels(self) -> Labels: ...
    def __len__(self) -> int: ...
    def __getitem__(self, i: int) -> Example: ...


class Listed:
    """A split held in memory."""

    in_runs: ClassVar = False

    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = examples
        self.labels: Labels = np.array([example.label for example in examples], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, i: int) -> Example:
        return self._examples[i]


def open_digits() -> tuple[tuple[str, ...], dict[str, Split]]:
    """The 1,797 scans that scikit-learn ships, as a `datasets.Dataset` of JPEG images; each fifth is validation."""
    from datasets import ClassLabel, Dataset, Features, Image
    from PIL import Image as Pillow
    from sklearn.datasets import load_digits

    digits = load_digits()
    classes = tuple(str(name) for name in digits.target_names)
    rows = []
    for i, scan in enumerate(digits.images):  # (8, 8) float64, 0 to 16
        grey = Pillow.fromarray(np.rint(scan * (255 / 16)).astype(np.uint8))
        encoded = io.BytesIO()
        grey.resize((DIGITS_SIDE, DIGITS_SIDE), Pillow.Resampling.BICUBIC).save(encoded, "JPEG", quality=95)
        rows.append({"bytes": encoded.getvalue(), "path": f"digit-{i:04d}.jpg"})
    features = Features({"image": Image(), "label": ClassLabel(names=list(classes))})
    dataset = Dataset.from_dict({"image": rows, "label": digits.target.tolist()}, features=features)
    examples = [
        Example(row["image"]["bytes"], row["label"], row["image"]["path"])
        for row in dataset.cast_column("image", Image(decode=False))
    ]
    is_val = [i % DIGITS_VAL_EVERY == DIGITS_VAL_EVERY - 1 for i in range(len(examples))]
    return classes, {
        "train": Listed([example for example, val in zip(examples, is_val, strict=True) if not val]),
        "val": Listed([example for example, val in zip(examples, is_val, strict=True) if val]),
    }


class FolderSplit:
    """Image files and their labels."""

    in_runs: ClassVar = False

    def __init__(self, root: Path, files: Sequence[Path], labels: Iterable[int]) -> None:
        self._root, self._files = root, files
        self.labels: Labels = np.fromiter(labels, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, i: int) -> Example:
        file = self._files[i]
        return Example(file.read_bytes(), int(self.labels[i]), show_name(file.relative_to(self._root)))


def _split_folders(data: str, folder: Path) -> dict[str, Path]:
    found = {split: [folder / name for name in names if (folder / name).is_dir()] for split, names in SPLITS.items()}
    if not any(found.values()):
        raise UserError(
            f"DATA={data}: nothing recognised in this folder (looked for index.json, *.parquet with train or "
            f"validation in their names, folders train/ and val/ or validation/). Known forms: {FORMS}"
        )
    for split, paths in found.items():
        if not paths:
            raise UserError(f"DATA={data}: split {split} is missing: there is no folder {' or '.join(SPLITS[split])}")
    return {split: paths[0] for split, paths in found.items()}


def image_files(data: str, folder: Path) -> dict[str, list[Path]]:
    """The images of each split, sorted by class folder and name. UserError for an empty class folder."""
    files: dict[str, list[Path]] = {}
    for split, path in _split_folders(data, folder).items():
        files[split] = []
        for class_folder in sorted(entry.name for entry in os.scandir(path) if entry.is_dir()):
            images = sorted(
                entry.name
                for entry in os.scandir(path / class_folder)
                if entry.name.lower().endswith(IMAGE_ENDINGS) and not entry.name.startswith(".") and entry.is_file()
            )
            if not images:
                raise UserError(
                    f"DATA={data}: class folder {path.name}/{class_folder} has no image ({' '.join(IMAGE_ENDINGS)}): "
                    "add images or remove the folder"
                )
            files[split] += [path / class_folder / image for image in images]
    return files


def open_image_folder(data: str, folder: Path) -> tuple[tuple[str, ...], dict[str, Split]]:
    files = image_files(data, folder)
    names = {split: sorted({file.parent.name for file in files[split]}) for split in files}
    if names["train"] != names["val"]:
        odd = sorted(set(names["train"]) ^ set(names["val"]))
        raise UserError(
            f"DATA={data}: train has {len(names['train'])} class folders, val has {len(names['val'])}, and they differ "
            f"(for example {odd[0]!r}): both need the same folders, <class>/<image>"
        )
    label = {name: i for i, name in enumerate(names["train"])}
    return tuple(names["train"]), {
        split: FolderSplit(folder, files[split], (label[file.parent.name] for file in files[split])) for split in files
    }
