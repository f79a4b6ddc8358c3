"""From every form of images to shards and their index. Real processes, killed and side by side, have their own file."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.images import (
    CLASSES,
    decode,
    digests,
    encode,
    image_folder,
    open_split,
    parquet_folder,
    photo,
    prepared,
    rows,
    write_parquet,
)
from trainer.contract import UserError
from trainer.data.format import Copies
from trainer.data.making.prepare import prepare
from trainer.data.progress import Track
from trainer.store import open_store

COPIES = Copies((32, 16), (40, 24), 90)


# A data set in, shards out.


def test_every_form_gives_the_images_in_order_with_labels_and_names(tmp_path: Path) -> None:
    folder, parquet = image_folder(tmp_path / "folder"), parquet_folder(tmp_path / "parquet")
    small: dict[str, Any] = {"side": 64}  # larger than the images: pixels stay
    first = open_split(tmp_path, prepared(folder, tmp_path, **small), short_side=64)
    files = sorted((folder / "train").glob("*/*"))
    assert len(first) == len(files)
    assert all(np.array_equal(decode(first.jpeg(i)), decode(file.read_bytes())) for i, file in enumerate(files))
    assert [first.name(i) for i in range(len(first))] == [str(file.relative_to(folder)) for file in files]
    assert list(first.labels) == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert first.labels.dtype == np.int64
    second = open_split(tmp_path, prepared(parquet, tmp_path, **small), short_side=64)
    for i, row in enumerate(rows(12)):
        assert np.array_equal(decode(second.jpeg(i)), decode(row["image"]["bytes"]))
    assert list(second.labels) == [row["label"] for row in rows(12)]


def test_every_copy_holds_the_same_images_and_opens_with_datasets(tmp_path: Path) -> None:
    import datasets

    result = prepared(image_folder(tmp_path / "folder", side=60), tmp_path, copies=COPIES, images_per_shard=5)
    assert {split: [size.short_side for size in content.sizes] for split, content in result.index.splits.items()} == {
        "train": [32, 16],
        "val": [40, 24],
    }
    for split in ("train", "val"):
        first, second = (open_split(tmp_path, result, split, side) for side in COPIES.sides(split))
        assert list(first.labels) == list(second.labels)
        assert [first.name(i) for i in range(len(first))] == [second.name(i) for i in range(len(second))]
        for size in result.index.splits[split].sizes:
            files = [str(tmp_path / result.prefix / shard.file) for shard in size.shards]
            opened = datasets.load_dataset("arrow", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
            assert isinstance(opened.features["image"], datasets.Image)
            assert opened.features["label"].names == list(CLASSES)
            assert opened["label"][:] == list(first.labels)
            assert {min(image.size) for image in opened["image"]} == {size.short_side}


def test_sides_may_be_given_in_any_order(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "folder")
    result = prepared(folder, tmp_path, copies=COPIES)
    assert prepared(folder, tmp_path, copies=Copies((16, 32), (24, 40), 90)) == result


def test_the_bytes_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "folder")
    for workers in (1, 7):
        prepared(folder, tmp_path / str(workers), workers=workers, images_per_shard=5)
    assert digests(tmp_path / "1") == digests(tmp_path / "7")
    assert len(digests(tmp_path / "1")) == 2 * (3 + 2) + 1  # a shard and the file beside it; the index


def test_a_second_call_writes_nothing_and_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = image_folder(tmp_path / "folder")
    first = prepared(folder, tmp_path)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / first.prefix).iterdir()}
    capfd.readouterr()
    assert prepared(folder, tmp_path) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / first.prefix).iterdir()} == written
    assert "already prepared in" in capfd.readouterr().err


def test_other_images_options_or_conversions_make_another_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = image_folder(tmp_path / "folder")
    other = [Copies((32,), (32,), 80), Copies((32, 16), (32,), 90), Copies((32,), (40,), 90)]
    versions = [prepared(folder, tmp_path, copies=copies).prefix for copies in [COPIES, *other]]
    assert [re.sub("[0-9a-f]{12}$", "", Path(version).name) for version in versions] == [
        "32-16px-q90-", "32px-q80-", "32-16px-q90-", "32px-q90-",
    ]  # fmt: skip
    monkeypatch.setattr("trainer.data.making.prepare.CONVERSION", 0)
    versions.append(prepared(folder, tmp_path, copies=COPIES).prefix)
    monkeypatch.undo()
    (folder / "train" / CLASSES[0] / "new.JPEG").write_bytes(encode(photo(99)))
    versions.append(prepared(folder, tmp_path, copies=COPIES).prefix)
    assert len(set(versions)) == 6


def test_an_interrupted_preparation_continues_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    folder, options = image_folder(tmp_path / "folder"), dict[str, Any](copies=COPIES, images_per_shard=5)
    whole = prepared(folder, tmp_path / "whole", **options)
    again = tmp_path / "again" / prepared(folder, tmp_path / "again", **options).prefix
    kept = again / "train-32px-00002.arrow"  # its small copy is lost
    stamp = kept.stat().st_mtime_ns
    for lost in ("index.json", "train-16px-00002.arrow", "train-32px-00001.arrow", "val-40px-00000.arrow"):
        (again / lost).unlink()
    assert prepared(folder, tmp_path / "again", **options) == whole
    assert digests(again) == digests(tmp_path / "whole" / whole.prefix)
    assert kept.stat().st_mtime_ns == stamp


def test_shards_that_another_preparation_writes_meanwhile_are_taken_over(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, options = image_folder(tmp_path / "folder"), dict[str, Any](copies=COPIES, images_per_shard=5)
    stamps: dict[Path, int] = {}

    def other(count: int) -> None:
        if not stamps:  # after the first image of the first part
            done = prepared(folder, tmp_path, **options)
            stamps.update({path: path.stat().st_mtime_ns for path in (tmp_path / done.prefix).glob("*.arrow")})

    prepared(folder, tmp_path, **options, progress=other)
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    said = capfd.readouterr().err
    for path in stamps:
        assert f"{path.name}: another preparation has written it meanwhile; taken over" in said


def test_progress_tells_rate_and_time_left_from_the_work_alone(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("trainer.data.progress.time.monotonic", lambda: now)
    with Track(100_000, "images", "preparing x") as track:
        track.add(40_000, skipped=True)  # there from an earlier call
        now = 40.0
        track.add(1)  # which had to wait until the code was compiled
        assert "preparing x: 40,001/100,000 images, 0/s, time left unknown" in capfd.readouterr().err
        now = 60.0
        track.add(100)
    assert "preparing x: 40,101/100,000 images, 5/s, 3.3 h left" in capfd.readouterr().err
    assert (track.worked, track.seconds) == (101, 60)


def test_the_bar_tells_no_time_left_from_the_image_that_waited_for_the_compiler(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.data.progress.sys.stderr.isatty", lambda: True, raising=False)
    clock = [0.0]
    monkeypatch.setattr("time.time", lambda: clock[0])
    monkeypatch.setattr("tqdm.std.time", lambda: clock[0])
    with Track(1_000, "images", "preparing x") as track:
        clock[0] = 40.0
        track.add(1)
        clock[0] = 50.0
        track.add(100)
        said = capfd.readouterr().err
    assert "101/1.00k [00:10<01:29" in said, said


@pytest.mark.parametrize("form", [image_folder, parquet_folder])
def test_a_long_preparation_begins_with_an_estimate_of_what_is_left_to_do(
    form: Callable[[Path], Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = form(tmp_path / "data")
    result = prepared(data, tmp_path, copies=COPIES, images_per_shard=5)
    assert "estimate" not in capfd.readouterr().err
    folder = tmp_path / result.prefix
    whole = digests(folder)
    for lost in ("index.json", "train-32px-00000.arrow", "train-16px-00001.arrow"):
        (folder / lost).unlink()
    monkeypatch.setattr("trainer.data.making.parts.ESTIMATE_FROM", 10)
    monkeypatch.setattr("trainer.data.making.parts.ESTIMATE_SAMPLE", 6)
    assert prepared(data, tmp_path, copies=COPIES, images_per_shard=5, workers=2) == result
    said = capfd.readouterr().err
    assert re.search(
        rf"estimate: 10 images, about 0.0 MB in {folder}, about \d+ s at [\d,]+ images/s \(2 threads\)", said
    )
    assert said.index("estimate:") < said.index("preparing")
    assert digests(folder) == whole


def with_broken(folder: Path, count: int, good: int) -> Path:
    """Tiny images, of which the first `count` of training are cut."""
    content = rows(good, side=8)
    for row in content[:count]:
        row["image"] = {"bytes": row["image"]["bytes"][:-30], "path": row["image"]["path"]}
    write_parquet(folder / "train.parquet", content)
    write_parquet(folder / "validation.parquet", rows(3))
    return folder


def test_one_broken_image_of_a_thousand_is_named_and_left_out(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = prepared(with_broken(tmp_path / "data", 1, 1000), tmp_path)
    split = open_split(tmp_path, result)
    assert len(split) == result.index.splits["train"].images == 999
    assert split.name(0) == "image_1.JPEG"
    assert "broken and left out: 1: image_0.JPEG: image file is truncated" in capfd.readouterr().err


def test_too_many_broken_images_fail_with_their_names_and_keep_what_is_complete(tmp_path: Path) -> None:
    data = with_broken(tmp_path / "data", 2, 20)
    with pytest.raises(UserError, match=r"2 broken images of 23.*image_0.JPEG.*image_1.JPEG.*--max-broken-share"):
        prepared(data, tmp_path, images_per_shard=8)
    kept = digests(tmp_path / "datasets")
    assert [Path(name).name for name in kept] == ["train-32px-00000.arrow", "train-32px-00000.arrow.json"]
    prepare(str(data), open_store(str(tmp_path)), Copies((32,), (32,), 90), images_per_shard=8, max_broken_share=0.2)
    assert kept.items() <= digests(tmp_path / "datasets").items()


def test_a_split_without_a_whole_image_fails_and_leaves_no_index(tmp_path: Path) -> None:
    content = rows(3)
    for row in content:
        row["image"] = {"bytes": b"no image", "path": row["image"]["path"]}
    write_parquet(tmp_path / "data" / "train.parquet", rows(3))
    write_parquet(tmp_path / "data" / "validation.parquet", content)
    with pytest.raises(UserError, match=r"split val has no image left, all 3 are broken: image_0.JPEG: .*Replace them"):
        prepared(tmp_path / "data", tmp_path, max_broken_share=0.9)
    assert not list((tmp_path / "datasets").rglob("index.json"))


def test_the_summary_counts_what_was_odd(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = image_folder(tmp_path / "folder")
    train = folder / "train" / CLASSES[0]
    (train / "png.JPEG").write_bytes(encode(photo(1), "PNG"))
    (train / "cmyk.JPEG").write_bytes(encode(photo(2).convert("CMYK")))
    (train / "grey.JPEG").write_bytes(encode(photo(3).convert("L")))
    prepared(folder, tmp_path, copies=COPIES, workers=3)
    said = capfd.readouterr().err
    assert "folder: 15 train and 6 val images of 3 classes" in said
    assert "copies: train 32 px 0.0 MB, train 16 px 0.0 MB, val 40 px 0.0 MB, val 24 px 0.0 MB" in said
    assert "seen: 1 CMYK, 1 PNG named .JPEG, 1 grey" in said
    assert re.search(r"converted 21 images in \d+ s, [\d,]+ images/s \(3 threads\)", said)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"side": 0}, "short side 0"),
        ({"max_broken_share": 1}, "share 1"),
        ({"copies": Copies((32,), (), 90)}, r"short sides \(\) of val"),
        ({"copies": Copies((32, 32), (32,), 90)}, r"short sides \(32, 32\) of train"),
        ({"copies": Copies((32,), (32,), 96)}, "quality 96"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        prepared("digits", tmp_path, **options)
