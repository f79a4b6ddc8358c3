"""The prepared form: read by threads and by `datasets`; damage is told, not trained on."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.images import CLASSES, decode, image_folder, open_split, prepared
from trainer.contract import UserError
from trainer.data.format import ImageRow, Index, Shard, Size, SplitIndex, read_tally, write_shard
from trainer.recipes.config import DataConfig
from trainer.recipes.sides import wanted_span


def test_datasets_opens_a_shard_with_image_and_class_label(tmp_path: Path) -> None:
    import datasets

    folder = image_folder(tmp_path / "folder")
    result = prepared(folder, tmp_path, images_per_shard=5)
    files = [str(path) for path in sorted((tmp_path / result.prefix).glob("train-*.arrow"))]
    opened = datasets.load_dataset(
        "arrow", data_files={"train": files}, split="train", cache_dir=str(tmp_path / "cache")
    )
    assert isinstance(opened.features["image"], datasets.Image)
    assert opened.features["label"].names == list(CLASSES)
    split = open_split(tmp_path, result)
    assert opened["label"][:] == list(split.labels)
    assert all((np.asarray(opened[i]["image"]) == decode(split.jpeg(i))).all() for i in range(len(split)))


def test_many_threads_read_the_same_bytes(tmp_path: Path) -> None:
    split = open_split(tmp_path, prepared("digits", tmp_path, images_per_shard=500))
    one_by_one = [bytes(split.jpeg(i)) for i in range(len(split))]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda i: bytes(split.jpeg(i)), range(len(split)))) == one_by_one
    assert not split.jpeg(0).flags.writeable


def test_rows_without_a_jpeg_leave_a_trace_but_no_image() -> None:
    broken = [ImageRow("a.JPEG", 0, None, reason="cut"), ImageRow("b.JPEG", 0, None, reason="cut")]
    tally = read_tally(write_shard(CLASSES, [*broken, ImageRow("c.JPEG", 2, b"x", ("grey",))]), "here")
    assert (tally.images, tally.broken, dict(tally.odd)) == (1, ["a.JPEG: cut", "b.JPEG: cut"], {"grey": 1})
    assert read_tally(write_shard(CLASSES, broken), "here").images == 0


def test_the_index_survives_a_round_trip_() -> None:
    sizes = tuple(Size(side, 90, (Shard(f"train-{side}px-00000.arrow", 7, 100, 5),)) for side in (128, 256))
    index = Index("a", "b", CLASSES, {"train": SplitIndex(7, sizes), "val": SplitIndex(7, sizes)}, "f")
    assert Index.from_json(index.to_json(), "here") == index


@pytest.mark.parametrize(
    ("split", "pixels", "sides"),
    [
        ("train", (88, 112, 113, 128, 224, 288), [128, 128, 256, 256, 256, 256]),
        ("val", (96, 128, 129, 256, 300), [128, 128, 256, 256, 256]),
    ],
)
def test_an_image_is_read_from_the_smallest_size_that_serves(
    split: str, pixels: tuple[int, ...], sides: list[int]
) -> None:
    sizes = tuple(Size(side, 90, ()) for side in (128, 256))
    index = Index("a", "b", CLASSES, {"train": SplitIndex(7, sizes), "val": SplitIndex(7, sizes)}, "f")
    assert [index.sides_for(split, wanted_span(DataConfig(), split, px)) for px in pixels] == [
        (side,) for side in sides
    ]


def cut_index(folder: Path) -> str:
    path = folder / "index.json"
    path.write_text(path.read_text()[:100])
    return "index.json is damaged"


def missing_index(folder: Path) -> str:
    (folder / "index.json").unlink()
    return "index.json does not exist.*written last"


def edited(change: Callable[[dict[str, object]], object], message: str) -> Callable[[Path], str]:
    def damage(folder: Path) -> str:
        content = json.loads((folder / "index.json").read_text())
        change(content)
        (folder / "index.json").write_text(json.dumps(content))
        return message

    return damage


def cut_shard(folder: Path) -> str:
    path = folder / "train-32px-00000.arrow"
    path.write_bytes(path.read_bytes()[:-1])
    return r"train-32px-00000.arrow has \d+ bytes, index.json says"


def missing_shard(folder: Path) -> str:
    (folder / "train-32px-00000.arrow").unlink()
    return "train-32px-00000.arrow is missing"


def overwritten_shard(folder: Path) -> str:
    path = folder / "train-32px-00000.arrow"
    path.write_bytes(bytes(path.stat().st_size))
    return r"is not a whole shard \(Not an Arrow file\)"


@pytest.mark.parametrize(
    "damage",
    [
        cut_index,
        missing_index,
        cut_shard,
        missing_shard,
        overwritten_shard,
        edited(lambda content: content.update(format=2), "has format 2, this trainer reads 1"),
        edited(lambda content: content.pop("classes"), "damaged.*classes"),
        edited(lambda content: content.update(extra=1), "damaged.*extra"),
        edited(lambda content: content["splits"].pop("val"), "damaged.*train and val"),  # type: ignore[attr-defined]
        edited(lambda content: content["splits"]["val"].update(images=5), "do not hold 5"),  # type: ignore[index]
        edited(lambda content: content.update(name="../up"), "not a plain name"),
    ],
)
def test_damage_is_told_before_any_image_is_read(damage: Callable[[Path], str], tmp_path: Path) -> None:
    result = prepared(image_folder(tmp_path / "folder"), tmp_path)
    message = damage(tmp_path / result.prefix)
    with pytest.raises(UserError, match=message):
        open_split(tmp_path, result)


def test_a_size_that_is_not_stored_is_told(tmp_path: Path) -> None:
    result = prepared(image_folder(tmp_path / "folder"), tmp_path)
    with pytest.raises(UserError, match=r"no 64-px images of train, only \[32\]"):
        open_split(tmp_path, result, short_side=64)
