"""What DATA= may name on this machine, and what is said when it names something else."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests import ROOT
from tests.images import CLASSES, decode, image_folder, parquet_folder, rows, write_parquet
from trainer.contract import UserError
from trainer.data.making.forms.sources import identify, open_source
from trainer.data.making.layout import Choices
from trainer.data.making.revision.identity import identity_of
from trainer.data.making.revision.manifest import SourceMemory


def test_digits_are_the_1797_scans_with_every_fifth_for_validation() -> None:
    source = open_source("digits")
    assert (len(source.splits["train"]), len(source.splits["val"])) == (1438, 359)
    assert source.classes == tuple("0123456789")
    assert set(source.splits["val"].labels) == set(range(10))
    example = source.splits["val"][0]
    assert example.name == "digit-0004.jpg"
    assert example.label == 4
    from sklearn.datasets import load_digits

    scan = load_digits().images[4] * (255 / 16)
    stored = decode(example.image)[:, :, 0].astype(float)
    assert stored.shape == (32, 32)
    assert abs(stored.reshape(8, 4, 8, 4).mean((1, 3)) - scan).mean() < 12


def test_an_image_folder_is_read_in_the_order_of_sorted_classes_and_names(tmp_path: Path) -> None:
    source = open_source(str(image_folder(tmp_path, train=3, val=1)))
    assert source.classes == CLASSES
    assert list(source.splits["train"].labels) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert source.splits["train"][4].name == "train/n01443537/n01443537_1.JPEG"
    assert source.splits["train"][4].image == (tmp_path / source.splits["train"][4].name).read_bytes()
    assert len(source.splits["val"]) == 3


def test_a_folder_named_validation_serves_as_well_as_val(tmp_path: Path) -> None:
    image_folder(tmp_path)
    (tmp_path / "val").rename(tmp_path / "validation")
    assert len(open_source(str(tmp_path)).splits["val"]) == 6


def test_a_parquet_folder_keeps_rows_order_and_class_names(tmp_path: Path) -> None:
    source = open_source(str(parquet_folder(tmp_path)))
    expected = rows(12)
    assert source.classes == CLASSES
    assert [source.splits["train"][i].image for i in range(12)] == [row["image"]["bytes"] for row in expected]
    assert list(source.splits["train"].labels) == [row["label"] for row in expected]
    assert source.splits["train"][11].name == "image_11.JPEG"
    assert len(source.splits["val"]) == 6


def test_parquet_rows_can_be_read_by_many_threads_in_any_order(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    split = open_source(str(parquet_folder(tmp_path, train=60))).splits["train"]
    order = np.random.default_rng(0).permutation(60)
    with ThreadPoolExecutor(8) as pool:
        assert [example.name for example in pool.map(split.__getitem__, order)] == [f"image_{i}.JPEG" for i in order]


def test_parquet_without_class_names_numbers_its_classes(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train" / "0000.parquet", rows(6), names=None)
    write_parquet(tmp_path / "val" / "0000.parquet", rows(3), names=None)
    assert open_source(str(tmp_path)).classes == ("0", "1", "2")


def test_the_name_is_that_of_the_folder_or_of_the_hub_and_is_told_without_opening_them(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "My Photos")
    assert identify(str(folder)) == ("my-photos", "folder")
    assert identify("ILSVRC/imagenet-1k") == ("imagenet-1k", "hub")


def test_importing_and_identifying_does_not_load_datasets_or_the_hub_client() -> None:
    code = (
        "import sys; from trainer.data.making.forms.sources import identify; "
        "identify('digits'); identify('ILSVRC/imagenet-1k'); "
        "print([m for m in ('datasets', 'huggingface_hub', 'sklearn', 'torch', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Each makes bad data in a folder and gives what the message must say.
def no_such_folder(folder: Path) -> str:
    folder.rmdir()
    return "does not exist"


def a_file(folder: Path) -> str:
    folder.rmdir()
    folder.write_text("x")
    return "is a file"


def nothing_known(folder: Path) -> str:
    (folder / "notes.txt").write_text("x")
    return "nothing recognised.*looked for"


def no_val_folder(folder: Path) -> str:
    image_folder(folder)
    (folder / "val").rename(folder / "other")
    return "split val is missing"


def empty_class_folder(folder: Path) -> str:
    image_folder(folder)
    (folder / "train" / "n09999999").mkdir()
    return "train/n09999999 has no image"


def other_classes_in_val(folder: Path) -> str:
    image_folder(folder)
    (folder / "val" / CLASSES[1]).rename(folder / "val" / "n07777777")
    return "differ.*n01443537"


def flat_val(folder: Path) -> str:
    image_folder(folder)
    for image in (folder / "val").glob("*/*"):
        image.rename(folder / "val" / image.name)
    for empty in (folder / "val").glob("n*[0-9]"):
        if empty.is_dir():
            empty.rmdir()
    return "val has 0"


def no_validation_file(folder: Path) -> str:
    write_parquet(folder / "train-00000-of-00001.parquet", rows(6))
    return "split val is missing"


def no_rows(folder: Path) -> str:
    write_parquet(folder / "train.parquet", rows(6), names=None)
    write_parquet(folder / "validation.parquet", [], names=None)
    return "split val has no images"


def a_class_without_rows(folder: Path) -> str:
    write_parquet(folder / "train.parquet", rows(6, classes=2))
    write_parquet(folder / "validation.parquet", rows(6))
    return "class 'n01484850' has no training image"


def label_too_large(folder: Path) -> str:
    parquet_folder(folder)
    write_parquet(
        folder / "data" / "validation-00000-of-00001.parquet", [*rows(3), {**rows(1)[0], "label": 3}], names=None
    )
    write_parquet(folder / "data" / "train-00000-of-00002.parquet", rows(6), names=None)
    write_parquet(folder / "data" / "train-00001-of-00002.parquet", rows(6), names=None)
    return "label 3 of image 3 in split val is out of range.*0 to 2"


def label_negative(folder: Path) -> str:
    write_parquet(folder / "train.parquet", [*rows(3), {**rows(1)[0], "label": -1}])
    write_parquet(folder / "validation.parquet", rows(3))
    return "label -1 of image 3 in split train is out of range"


def label_null(folder: Path) -> str:
    write_parquet(folder / "train.parquet", [*rows(3), {**rows(1)[0], "label": None}], names=None)
    write_parquet(folder / "validation.parquet", rows(3), names=None)
    return "label -1 of image 3"


def names_differ(folder: Path) -> str:
    write_parquet(folder / "train.parquet", rows(6))
    write_parquet(folder / "validation.parquet", rows(6), names=("cat", "dog", "cow"))
    return "class names of train and val differ"


def other_columns(folder: Path) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for split in ("train", "validation"):
        pq.write_table(pa.table({"img": [b"x"], "label": [0]}), folder / f"{split}.parquet")
    return "no column 'image'.*hub's ImageNet schema"


def cut_file(folder: Path) -> str:
    parquet_folder(folder)
    file = folder / "data" / "train-00001-of-00002.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    return "train-00001-of-00002.parquet is not a readable parquet file"


BAD: list[Callable[[Path], str]] = [
    no_such_folder, a_file, nothing_known, no_val_folder, empty_class_folder, other_classes_in_val, flat_val,
    no_validation_file, no_rows, a_class_without_rows, label_too_large, label_negative, label_null, names_differ,
    other_columns, cut_file,
]  # fmt: skip


@pytest.mark.parametrize("make", BAD, ids=lambda make: make.__name__)
def test_bad_data_gives_one_clear_message(make: Callable[[Path], str], tmp_path: Path) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    message = make(folder)
    with pytest.raises(UserError, match=message) as error:
        open_source(str(folder))
    assert f"DATA={folder}" in str(error.value)


def test_the_digits_have_nothing_to_choose() -> None:
    with pytest.raises(UserError, match="--val-split does not apply to the digits: leave it out"):
        identity_of("digits", Choices(val_split="test"), SourceMemory())
