"""Two small prepared splits, which no test changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.images import image_folder, open_split, prepared
from trainer.data.making.prepare import Prepared
from trainer.data.reading.split import PreparedSplit


@pytest.fixture(scope="package")
def two_splits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Prepared]:
    """24 images of training, 15 of validation, in three classes."""
    root = tmp_path_factory.mktemp("loader")
    return root, prepared(image_folder(root / "folder", train=8, val=5), root)


@pytest.fixture(scope="package")
def train_split(two_splits: tuple[Path, Prepared]) -> PreparedSplit:
    return open_split(*two_splits)


@pytest.fixture(scope="package")
def val_split(two_splits: tuple[Path, Prepared]) -> PreparedSplit:
    return open_split(*two_splits, split="val")
