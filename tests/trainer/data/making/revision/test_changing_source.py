"""Earlier preparations, interrupted ones, and sources that change while they are read: contents are never mixed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.images import CLASSES, encode, image_folder, parquet_folder, photo, prepared
from trainer.contract import UserError
from trainer.data.format import Index, read_index
from trainer.data.making.layout import Choices
from trainer.data.making.revision.identity import identity_of
from trainer.data.making.revision.manifest import SourceMemory


def test_what_an_older_version_prepared_is_prepared_again_with_the_same_fingerprint_and_that_is_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = image_folder(tmp_path / "photos")
    new = prepared(folder, tmp_path)
    old = tmp_path / "datasets" / "photos" / "32px-q90-0123456789ab"
    (tmp_path / new.prefix).rename(old)
    raw = json.loads((old / "index.json").read_text())
    del raw["source"]  # as older versions wrote it
    (old / "index.json").write_text(json.dumps(raw | {"version": old.name}))
    capfd.readouterr()
    assert prepared(folder, tmp_path) == new
    text = capfd.readouterr().err
    assert f"photos: {old} is kept, but an older version of this program made it" in text
    assert f"the same bytes as version {old.name}: runs that began on that continue on this" in text
    assert read_index(old).source is None


def test_the_index_records_the_source_and_an_odd_record_is_refused(tmp_path: Path) -> None:
    text = prepared(image_folder(tmp_path / "photos"), tmp_path).index.to_json()
    assert Index.from_json(text, "here").to_json() == text
    raw = json.loads(text)
    for wrong in ({"files": "18"}, {"files": -1}, {"colour": "red"}):
        with pytest.raises(UserError, match="here is damaged"):
            Index.from_json(json.dumps(raw | {"source": raw["source"] | wrong}), "here")


def test_an_interrupted_preparation_continues_only_on_the_same_content(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "photos")

    counts: list[int] = []

    def stop(count: int) -> None:
        counts.append(count)
        if len(counts) == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepared(folder, tmp_path / "store", images_per_shard=4, progress=stop)
    half = {path.parent.name for path in (tmp_path / "store").rglob("*.arrow")}
    assert len(half) == 1
    (folder / "train" / CLASSES[2] / f"{CLASSES[2]}_3.JPEG").write_bytes(encode(photo(9)))
    whole = prepared(folder, tmp_path / "store", images_per_shard=4)
    assert whole.index.version not in half
    assert whole.index.fingerprint == prepared(folder, tmp_path / "other", images_per_shard=4).index.fingerprint


def write_again(file: Path) -> str:
    file.write_bytes(encode(photo(9)))
    return "it had .* bytes and has"


def remove(file: Path) -> str:
    file.unlink()
    return "it is gone"


def replace(file: Path) -> str:
    new = file.with_name("new")
    new.write_bytes(file.read_bytes())
    new.replace(file)
    return "another file took its place"


@pytest.mark.parametrize("change", [write_again, remove, replace])
def test_a_source_that_changes_while_it_is_prepared_is_refused_and_nothing_of_it_is_stored(
    change: Callable[[Path], str], tmp_path: Path
) -> None:
    folder = image_folder(tmp_path / "photos")
    file = folder / "train" / CLASSES[2] / f"{CLASSES[2]}_3.JPEG"
    expected = ""

    def in_the_second_part(count: int) -> None:
        nonlocal expected
        if not expected:
            expected = change(file)

    with pytest.raises(UserError) as refusal:
        prepared(folder, tmp_path / "store", images_per_shard=6, workers=1, progress=in_the_second_part)
    assert re.search(
        f"n01484850_3.JPEG (changed while the data was read .{expected}|cannot be read)", str(refusal.value)
    )
    assert not list((tmp_path / "store").rglob("train-32px-00001.arrow"))
    assert not list((tmp_path / "store").rglob("index.json"))


def test_a_file_that_changes_while_it_is_hashed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = image_folder(tmp_path / "photos")
    file = folder / "train" / CLASSES[0] / f"{CLASSES[0]}_1.JPEG"
    read = os.readv

    def and_grow(descriptor: int, buffers: list[memoryview]) -> int:
        if os.fstat(descriptor).st_ino == file.stat().st_ino:
            with file.open("ab") as growing:
                growing.write(b"more")
        return read(descriptor, buffers)

    monkeypatch.setattr(os, "readv", and_grow)
    with pytest.raises(UserError, match=rf"DATA={folder}: train/.*_1.JPEG changed while the data was read"):
        prepared(folder, tmp_path / "store")


def test_names_in_any_bytes_are_part_of_the_identity(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "photos")
    odd = os.fsencode(folder / "train" / CLASSES[0]) + b"/caf\xe9\n.JPEG"
    Path(os.fsdecode(odd)).write_bytes(encode(photo(8)))
    first = prepared(folder, tmp_path / "store")
    assert first.index.splits["train"].images == 13
    os.rename(odd, odd.replace(b"\xe9", b"\xe8"))  # noqa: PTH104  # a path of bytes
    assert prepared(folder, tmp_path / "store").prefix != first.prefix


def test_a_source_that_changes_while_it_is_opened_is_told_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is wrong with a mixture of two states would lead astray."""
    folder = parquet_folder(tmp_path / "photos")
    shard, read = folder / "data" / "train-00001-of-00002.parquet", pq.read_schema

    def and_write_again(path: Path) -> object:
        if path == shard:
            shard.write_bytes(b"half of a new one")
        return read(path)

    monkeypatch.setattr(pq, "read_schema", and_write_again)
    with pytest.raises(UserError, match=r"train-00001-of-00002.parquet changed while the data was read \(it had"):
        prepared(folder, tmp_path / "store")


@pytest.mark.parametrize(
    "choices",
    [
        Choices(accept_incomplete=True),
        Choices(train_split="train", val_split="validation"),
        Choices(image_column="image", label_column="label"),
    ],
)
def test_words_that_choose_what_is_read_anyway_are_the_same_data(choices: Choices, tmp_path: Path) -> None:
    folder, memory = parquet_folder(tmp_path / "photos"), SourceMemory(tmp_path / "scratch")
    first = identity_of(str(folder), Choices(), memory).content
    assert identity_of(str(folder), choices, memory).content == first
    assert identity_of(str(folder), choices, SourceMemory()).content == first


def test_columns_that_are_read_are_part_of_the_content(tmp_path: Path) -> None:
    folder, memory = parquet_folder(tmp_path / "photos"), SourceMemory(tmp_path / "scratch")
    found = [identity_of(str(folder), Choices(label_column=name), memory).content for name in ("", "coarse", "fine")]
    assert len(set(found)) == 3
