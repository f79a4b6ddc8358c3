"""What a file system, a library or a limit makes of a user's files: right, or one message with the file and the fix."""

from __future__ import annotations

import os
from pathlib import Path

from tests.images import encode, image_folder, open_split, photo, prepared, rows, write_parquet


def names(store: Path, data: Path) -> list[str]:
    split = open_split(store, prepared(data, store))
    return [split.name(i) for i in range(len(split))]


def test_file_names_that_are_no_utf8_are_prepared_and_told_with_their_bytes(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data", classes=("cat", "dog"), train=1)
    (data / "train" / "cat" / os.fsdecode(b"caf\xe9\n.JPEG")).write_bytes(encode(photo(1)))
    assert names(tmp_path, data)[0] == r"train/cat/caf\xe9\n.JPEG"


def test_names_in_parquet_may_hold_any_character(tmp_path: Path) -> None:
    content = rows(3)
    content[0]["image"]["path"] = "nul\0, \x1b[31m red, é 🐈.JPEG"
    write_parquet(tmp_path / "data" / "train.parquet", content)
    write_parquet(tmp_path / "data" / "validation.parquet", rows(3))
    assert names(tmp_path, tmp_path / "data")[0] == r"nul\x00, \x1b[31m red, é 🐈.JPEG"
