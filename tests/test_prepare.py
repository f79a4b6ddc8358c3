"""From every form of images to shards, the command for it, and staging: prepared here, or copied from S3."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.images import (
    CLASSES,
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
from trainer.data.prepare import prepare
from trainer.data.shards import Copies, read_index
from trainer.store import open_store

REPOSITORY = Path(__file__).resolve().parents[1]


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


# A data set in, shards out.


def test_every_form_gives_the_images_in_order_with_labels_and_names(tmp_path: Path) -> None:
    folder, parquet = image_folder(tmp_path / "folder"), parquet_folder(tmp_path / "parquet")
    small = {"side": 64}  # larger than the images: bytes stay
    first = open_split(tmp_path, prepared(folder, tmp_path, **small), short_side=64)
    files = sorted((folder / "train").glob("*/*"))
    assert [bytes(first.jpeg(i)) for i in range(len(first))] == [file.read_bytes() for file in files]
    assert [first.name(i) for i in range(len(first))] == [str(file.relative_to(folder)) for file in files]
    assert list(first.labels) == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert first.labels.dtype == np.int64
    second = open_split(tmp_path, prepared(parquet, tmp_path, **small), short_side=64)
    assert [bytes(second.jpeg(i)) for i in range(12)] == [row["image"]["bytes"] for row in rows(12)]  # type: ignore[index]
    assert list(second.labels) == [row["label"] for row in rows(12)]


def test_the_bytes_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "folder")
    for workers in (1, 7):
        prepared(folder, tmp_path / str(workers), workers=workers, images_per_shard=5)
    assert digests(tmp_path / "1") == digests(tmp_path / "7")
    assert len(digests(tmp_path / "1")) == 3 + 2 + 1


def test_a_second_call_writes_nothing_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = image_folder(tmp_path / "folder")
    first = prepared(folder, tmp_path)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / first.prefix).iterdir()}
    capsys.readouterr()
    assert prepared(folder, tmp_path) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / first.prefix).iterdir()} == written
    assert "already prepared in" in capsys.readouterr().err


def test_other_images_or_options_make_another_version(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "folder")
    versions = {prepared(folder, tmp_path).prefix, prepared(folder, tmp_path, quality=80).prefix}
    (folder / "train" / CLASSES[0] / "new.JPEG").write_bytes(encode(photo(99)))
    assert len(versions | {prepared(folder, tmp_path).prefix}) == 3


def test_an_interrupted_preparation_continues_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "folder")
    whole = prepared(folder, tmp_path / "whole", images_per_shard=5)
    again = tmp_path / "again" / prepared(folder, tmp_path / "again", images_per_shard=5).prefix
    kept = again / "train-32px-00001.arrow"
    stamp = kept.stat().st_mtime_ns
    for lost in ("index.json", "train-32px-00002.arrow", "val-32px-00000.arrow"):
        (again / lost).unlink()
    assert prepared(folder, tmp_path / "again", images_per_shard=5) == whole
    assert digests(again) == digests(tmp_path / "whole" / whole.prefix)
    assert kept.stat().st_mtime_ns == stamp


def with_broken(folder: Path, count: int, good: int) -> Path:
    """Tiny images, of which the first `count` of training are cut."""
    content = rows(good, side=8)
    for row in content[:count]:
        row["image"] = {"bytes": row["image"]["bytes"][:-30], "path": row["image"]["path"]}  # type: ignore[index]
    write_parquet(folder / "train.parquet", content)
    write_parquet(folder / "validation.parquet", rows(3))
    return folder


def test_one_broken_image_of_a_thousand_is_named_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = prepared(with_broken(tmp_path / "data", 1, 1000), tmp_path)
    split = open_split(tmp_path, result)
    assert len(split) == result.index.splits["train"].images == 999
    assert split.name(0) == "image_1.JPEG"
    assert "broken and left out: 1: image_0.JPEG: image file is truncated" in capsys.readouterr().err


def test_too_many_broken_images_fail_with_their_names_and_keep_what_is_complete(tmp_path: Path) -> None:
    data = with_broken(tmp_path / "data", 2, 20)
    with pytest.raises(UserError, match=r"2 broken images of 23.*image_0.JPEG.*image_1.JPEG.*--max-broken-share"):
        prepared(data, tmp_path, images_per_shard=8)
    kept = digests(tmp_path / "datasets")
    assert [Path(name).name for name in kept] == ["train-32px-00000.arrow"]
    prepare(str(data), open_store(str(tmp_path)), Copies((32,), (32,), 90), images_per_shard=8, max_broken_share=0.2)
    assert kept.items() <= digests(tmp_path / "datasets").items()


def test_the_summary_counts_what_was_odd(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = image_folder(tmp_path / "folder")
    train = folder / "train" / CLASSES[0]
    (train / "png.JPEG").write_bytes(encode(photo(1), "PNG"))
    (train / "cmyk.JPEG").write_bytes(encode(photo(2).convert("CMYK")))
    (train / "grey.JPEG").write_bytes(encode(photo(3).convert("L")))
    prepared(folder, tmp_path)
    said = capsys.readouterr().err
    assert "folder: 15 train and 6 val images of 3 classes" in said
    assert "seen: 1 CMYK, 1 PNG named .JPEG, 1 grey" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [({"side": 0}, "short side 0"), ({"max_broken_share": 1}, "share 1")],
)
def test_impossible_options_are_refused(options: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        prepared("digits", tmp_path, **options)


# The command.


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trainer.prepare", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)


def test_the_command_prints_where_the_shards_are_and_how_to_train_from_them(tmp_path: Path) -> None:
    done = run("--data", str(image_folder(tmp_path / "folder")), "--store", str(tmp_path / "store"))
    assert done.returncode == 0, done.stderr
    where, train = done.stdout.splitlines()
    folder = Path(where.removeprefix("prepared: "))
    assert train == f"train from it: make train DATA={folder}"
    assert read_index(folder).splits["train"].images == 12
    assert "\r" not in done.stderr
    assert "\x1b" not in done.stderr


def test_help_shows_every_option_quickly_and_without_the_heavy_libraries() -> None:
    start = time.monotonic()
    done = run("--help")
    assert done.returncode == 0
    assert time.monotonic() - start < 5
    for option in (
        "--data",
        "--store",
        "--train-sides",
        "--val-sides",
        "--quality",
        "--workers",
        "--max-broken-share",
        "--secrets-dir",
    ):
        assert option in done.stdout
    assert "(default: 256 128)" in done.stdout


@pytest.mark.parametrize("wrong", [["--dta", "x"], ["--quality", "many"], ["--quality", "101"], ["--store", "ftp://x"]])
def test_wrong_options_exit_with_78_and_no_traceback(wrong: list[str], tmp_path: Path) -> None:
    done = run("--data", "digits", "--store", str(tmp_path), *wrong)
    assert done.returncode == 78, done.stderr
    assert wrong[0].strip("-") in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_ends_with_130_and_the_same_command_continues(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "folder", train=400, side=96)
    arguments = ["--data", str(folder), "--store", str(tmp_path / "store"), "--train-sides", "64", "--workers", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer.prepare", *arguments], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    while "preparing" not in process.stderr.readline():
        pass
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "run the same command again" in said
    assert "Traceback" not in said
    assert run(*arguments).returncode == 0
