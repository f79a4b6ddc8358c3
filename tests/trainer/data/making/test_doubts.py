"""What is told, or refused, about data that can be read and still may be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.images import CLASSES, digests, encode, image_folder, photo, prepared, rows, write_parquet
from trainer.contract import UserError


def with_doubts(folder: Path) -> Path:
    """One image of validation is in training, too, one of training has two labels, and two are empty."""
    image_folder(folder)
    first, second, third = (folder / "train" / name for name in CLASSES)
    (folder / "val" / CLASSES[1] / "leak.JPEG").write_bytes((second / f"{CLASSES[1]}_2.JPEG").read_bytes())
    (third / "twice.JPEG").write_bytes((first / f"{CLASSES[0]}_1.JPEG").read_bytes())
    for split in ("train", "val"):
        (folder / split / CLASSES[0] / "broken.JPEG").write_bytes(b"")  # the same bytes, but no image
    return folder


LEAK = (
    "1 images of val are in train, too: "
    f"val/{CLASSES[1]}/leak.JPEG is train/{CLASSES[1]}/{CLASSES[1]}_2.JPEG"
)  # fmt: skip
TWICE = (
    "1 images of train are there twice with different labels: "
    f"train/{CLASSES[0]}/{CLASSES[0]}_1.JPEG is train/{CLASSES[2]}/twice.JPEG"
)


def test_what_may_be_wrong_is_told_at_the_end_with_the_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    prepared(with_doubts(tmp_path / "data"), tmp_path, max_broken_share=0.5)
    said = capfd.readouterr().err
    assert f"  look at this: {LEAK}\n  look at this: {TWICE}\n" in said
    assert "  images of a class: train 4 to 5, val 2 to 3\n" in said
    assert "  files read: 14 as train (train), 8 as val (val)\n" in said


def test_data_without_a_doubt_is_told_none(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    prepared(image_folder(tmp_path / "data"), tmp_path, strict=True)
    assert "look at this" not in capfd.readouterr().err


def test_strict_refuses_what_is_else_told_and_leaves_no_index(tmp_path: Path) -> None:
    folder = with_doubts(tmp_path / "data")
    with pytest.raises(UserError) as error:
        prepared(folder, tmp_path, max_broken_share=0.5, strict=True)
    assert f"data: {LEAK}; {TWICE}. Correct the data, or prepare it without --strict-data" in str(error.value)
    assert not list(tmp_path.rglob("index.json"))


def test_strict_also_judges_what_was_prepared_before(tmp_path: Path) -> None:
    folder = with_doubts(tmp_path / "data")
    prepared(folder, tmp_path / "store", max_broken_share=0.5)
    before = digests(tmp_path / "store")
    with pytest.raises(UserError, match="images of val are in train"):
        prepared(folder, tmp_path / "store", max_broken_share=0.5, strict=True)
    assert digests(tmp_path / "store") == before


def test_an_interrupted_preparation_compares_all_images(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = with_doubts(tmp_path / "data")
    options: dict[str, Any] = {"max_broken_share": 0.5, "images_per_shard": 4}
    result = prepared(folder, tmp_path, **options)
    for name in ("index.json", "train-32px-00002.arrow", "val-32px-00000.arrow"):
        (tmp_path / result.prefix / name).unlink()
    capfd.readouterr()
    assert prepared(folder, tmp_path, **options) == result
    assert f"look at this: {LEAK}\n  look at this: {TWICE}\n" in capfd.readouterr().err


def test_classes_without_images_and_with_few_are_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = [row for row in rows(99) if row["label"] < 2 or row["image"]["path"] == "image_2.JPEG"]
    write_parquet(tmp_path / "data" / "train.parquet", content)
    write_parquet(tmp_path / "data" / "validation.parquet", rows(4, classes=2, first=500))
    prepared(tmp_path / "data", tmp_path)
    said = capfd.readouterr().err
    assert f"look at this: 1 classes of train have few images, the middle one 33: {CLASSES[2]}\n" in said
    assert f"look at this: 1 classes without an image in val: {CLASSES[2]}\n" in said


def test_the_same_pixels_in_other_bytes_are_no_doubt(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = image_folder(tmp_path / "data")
    (folder / "train" / CLASSES[0] / "x.png").write_bytes(encode(photo(1), "PNG"))
    (folder / "val" / CLASSES[0] / "x.png").write_bytes(encode(photo(1), "PNG", compress_level=1))
    prepared(folder, tmp_path)
    assert "look at this" not in capfd.readouterr().err
