"""A source is known by its content: what changed is noticed before "already prepared" is said, and never mixed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.images import CLASSES, again, encode, image_folder, parquet_folder, photo, prepared, rows, write_parquet
from trainer.contract import UserError
from trainer.data.format import Copies, read_index
from trainer.data.making.layout import Choices
from trainer.data.making.prepare import prepare
from trainer.data.making.revision.identity import identity_of
from trainer.data.making.revision.ledger import load_ledger
from trainer.data.making.revision.manifest import SourceMemory
from trainer.store import open_store

PAST = 1_600_000_000


# Already prepared?


def relabel(folder: Path) -> str:
    """Two images change places; names, sizes and times stay."""
    one, other = (folder / "train" / name / "img.bmp" for name in CLASSES[:2])
    bytes_of_one = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(bytes_of_one)
    for file in (one, other):
        os.utime(file, (PAST, PAST))
    return r"2 changed \(train/n01440764/img.bmp, train/n01443537/img.bmp\)"


def edit(folder: Path) -> str:
    """The same size, and by way of a new file with the old time."""
    file = folder / "train" / CLASSES[0] / "img.bmp"
    new = file.with_name("new")
    new.write_bytes(encode(photo(77), "BMP"))
    os.utime(new, (PAST, PAST))
    new.replace(file)
    return r"1 changed \(train/n01440764/img.bmp\)"


def add(folder: Path) -> str:
    (folder / "val" / CLASSES[2] / "more.JPEG").write_bytes(encode(photo(5)))
    return r"1 new \(val/n01484850/more.JPEG\)"


def rename(folder: Path) -> str:
    (folder / "val" / CLASSES[2] / "n01484850_0.JPEG").rename(folder / "val" / CLASSES[1] / "moved.JPEG")
    return r"1 new \(val/n01443537/moved.JPEG\), 1 gone \(val/n01484850/n01484850_0.JPEG\)"


def lose(folder: Path) -> str:
    for file in (folder / "train").glob("*/n*_[123].JPEG"):
        file.unlink()
    return r"9 gone \(train/n01440764/n01440764_1.JPEG, .*_2.JPEG, .*_3.JPEG, …\)"


@pytest.mark.parametrize("change", [relabel, edit, add, rename, lose])
def test_a_folder_that_has_changed_is_prepared_anew_and_what_differs_is_said(
    change: Callable[[Path], str], tmp_path: Path, said: Callable[[], str], reads: list[str]
) -> None:
    folder = image_folder(tmp_path / "photos")
    for label, name in enumerate(CLASSES):
        (folder / "train" / name / "img.bmp").write_bytes(encode(photo(label), "BMP"))
        os.utime(folder / "train" / name / "img.bmp", (PAST, PAST))
    first = again(folder, tmp_path)
    expected = change(folder)
    said()
    second = again(folder, tmp_path)
    assert second.prefix != first.prefix
    assert second.index.fingerprint != first.index.fingerprint
    text = said()
    assert re.search(f"DATA={folder} is not as it was when this machine read it last: {expected}", text), text
    assert re.search(r"photos: .* is kept. It was made from other contents: 21 files, .*; now \d+ files", text)
    assert "already prepared" not in text


def test_the_same_images_in_other_sizes_are_said_and_kept(tmp_path: Path, said: Callable[[], str]) -> None:
    folder, store = image_folder(tmp_path / "photos"), open_store(str(tmp_path / "store"))
    (tmp_path / "store").mkdir()
    memory = SourceMemory(tmp_path / "sources")
    first = prepare(str(folder), store, Copies((32, 16), (32,)), memory=memory)
    assert "other sizes" not in said()
    prepare(str(folder), store, Copies((40, 32, 16), (40, 32)), memory=memory)
    where = tmp_path / "store" / first.prefix
    line = f"photos: {where} is kept. It has the same images in other sizes: train 32 16 px, val 32 px. Its runs"
    assert line in said()
    assert read_index(where) == first.index


@pytest.mark.parametrize("change", [add, rename])
def test_a_file_that_comes_or_goes_after_the_content_was_recalled_is_not_used(
    change: Callable[[Path], str], tmp_path: Path, reads: list[str]
) -> None:
    folder = image_folder(tmp_path / "photos")
    again(folder, tmp_path)
    recalled = identity_of(str(folder), Choices(), SourceMemory(tmp_path / "scratch"))
    change(folder)
    with pytest.raises(
        UserError, match=r"(more|moved|_0).JPEG changed while the data was read .(it is new|it is gone)"
    ):
        recalled.open()


def test_an_unchanged_folder_is_neither_read_nor_listed_again(
    tmp_path: Path, said: Callable[[], str], reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = image_folder(tmp_path / "photos")
    first = again(folder, tmp_path)
    assert len(reads) == 18
    assert first.index.source is not None
    assert (first.index.source.files, first.index.source.form) == (18, "folder")
    monkeypatch.setattr("trainer.data.making.revision.identity.plan", None)
    assert again(folder, tmp_path) == first
    assert len(reads) == 18
    assert "already prepared in" in (text := said())
    assert "its 18 files are unchanged, by size and time (--verify-source reads them again)" in text


def test_verify_source_reads_every_file_and_finds_what_kept_its_size_and_times(
    tmp_path: Path, said: Callable[[], str], reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = image_folder(tmp_path / "photos")
    first = again(folder, tmp_path)
    assert again(folder, tmp_path, verify=True) == first
    assert len(reads) == 36
    assert "its 18 files were read and are the same" in said()
    (folder / "train" / CLASSES[0] / f"{CLASSES[0]}_0.JPEG").write_bytes(encode(photo(3)))
    assert again(folder, tmp_path, verify=True).prefix != first.prefix


def test_only_what_was_touched_is_read_again_and_the_same_content_is_the_same_data(
    tmp_path: Path, reads: list[str]
) -> None:
    folder = image_folder(tmp_path / "photos")
    first = again(folder, tmp_path)
    reads.clear()
    os.utime(folder / "train" / CLASSES[1] / f"{CLASSES[1]}_2.JPEG")
    assert again(folder, tmp_path) == first
    assert reads == [f"train/{CLASSES[1]}/{CLASSES[1]}_2.JPEG"]


def test_a_file_that_was_written_a_moment_ago_is_read_again(tmp_path: Path, reads: list[str], monkeypatch) -> None:
    monkeypatch.setattr("trainer.data.making.revision.ledger.SETTLED_NS", 10**12)
    folder = image_folder(tmp_path / "photos")
    first = again(folder, tmp_path)
    assert again(folder, tmp_path) == first
    assert len(reads) == 36


def of_another_machine(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.data.making.revision.memory.this_machine", lambda *folders: "another machine")


def damaged(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One bit of a hash."""
    (_, _, rows), *_ = [found for found in load_ledger(ledger) if found[1] == "val"]
    body = ledger.read_bytes()
    wrong = bytes([rows.hashes[0, 0] ^ 1]) + rows.hashes[0, 1:].tobytes()
    ledger.write_bytes(body.replace(rows.hashes[0].tobytes(), wrong))


def cut(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.write_bytes(ledger.read_bytes()[:-700])


def of_another_format(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.write_bytes(ledger.read_bytes().replace(b'"format": 2', b'"format": 3'))


@pytest.mark.parametrize("spoil", [of_another_machine, damaged, cut, of_another_format])
def test_a_ledger_that_cannot_be_trusted_costs_a_reading_and_nothing_else(
    spoil: Callable[[Path, pytest.MonkeyPatch], None],
    tmp_path: Path,
    reads: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = image_folder(tmp_path / "photos")
    first = again(folder, tmp_path)
    reads.clear()
    spoil(next((tmp_path / "scratch").glob("*.arrow")), monkeypatch)
    assert again(folder, tmp_path) == first
    assert len(reads) == 18


def test_a_copy_of_a_folder_is_the_same_data_and_a_corrected_parquet_file_is_not(tmp_path: Path) -> None:
    for place in ("a", "b"):
        parquet_folder(tmp_path / place / "photos")
    first, second = (prepared(tmp_path / place / "photos", tmp_path / "store") for place in ("a", "b"))
    assert first == second
    file = tmp_path / "b" / "photos" / "data" / "train-00000-of-00002.parquet"
    write_parquet(file, [{**row, "label": (row["label"] + 1) % 3} for row in rows(6)])
    assert prepared(tmp_path / "b" / "photos", tmp_path / "store").prefix != first.prefix


def test_what_was_read_before_ctrl_c_is_not_read_again(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.data.making.revision.hashes.TASK_FILES", 1)
    monkeypatch.setattr("trainer.data.making.revision.hashes.TOLD_FROM", 0)
    folder = image_folder(tmp_path / "photos")

    def stop(count: int) -> None:
        if len(reads) > 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        again(folder, tmp_path, workers=1, downloaded=stop)
    reads.clear()
    result = again(folder, tmp_path)
    assert 0 < len(reads) < 18
    assert result == prepared(folder, tmp_path / "whole")
