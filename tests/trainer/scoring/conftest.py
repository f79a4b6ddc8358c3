"""Prepared images, which no test changes."""

from __future__ import annotations

import pytest

from tests.images import image_folder, open_split, prepared
from trainer.data.reading.split import PreparedSplit


@pytest.fixture(scope="package")
def split(tmp_path_factory: pytest.TempPathFactory) -> PreparedSplit:
    """15 images of three classes, 48 x 40 pixels, stored as they are."""
    root = tmp_path_factory.mktemp("scoring")
    return open_split(root, prepared(image_folder(root / "folder", train=1, val=5), root, 40), "val", 40)
