"""What a source of images is, and two forms of it: the digits, and image folders. Parquet files are in `parquet`.

Listing and reading only: which form DATA= means, and whether its labels make sense, is decided in `sources`.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from trainer.data.making.faults import naming_the_file
from trainer.data.making.forms.ground_truth import read_truth
from trainer.data.making.layout import SourceLayout
from trainer.text import show_name

Labels = npt.NDArray[np.int64]

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

    def __init__(self, root: Path, files: Sequence[str], labels: Labels) -> None:
        self._root, self._files, self.labels = root, files, labels

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, i: int) -> Example:
        file = self._files[i]
        with naming_the_file(self._root / file):
            image = (self._root / file).read_bytes()
        return Example(image, int(self.labels[i]), show_name(Path(file)))


def open_image_folder(data: str, folder: Path, layout: SourceLayout) -> dict[str, Split]:
    """The splits of an image folder. Raises UserError if the file that says the classes of validation does not."""
    splits: dict[str, Split] = {}
    for role, paths in layout.splits.items():
        if truth := layout.truth.get(role):
            of_train = np.bincount(layout.labels["train"], minlength=len(layout.classes)).tolist()
            files, accepted = [folder / path for path in truth], layout.choices.accept_incomplete
            labels = read_truth(data, files, paths, layout.classes, of_train, accepted)
        else:
            labels = layout.labels[role]
        splits[role] = FolderSplit(folder, paths, labels)
    return splits
