"""What a machine has read of a folder it does not read again: after other choices, a kill, a chmod, a new container."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.images import CLASSES, again, encode, image_folder, photo, prepared
from trainer.contract import UserError
from trainer.data.making.layout import Choices
from trainer.data.making.revision import ledger, manifest

FIRST = f"train/{CLASSES[0]}/{CLASSES[0]}_0.JPEG"


def test_other_choices_read_what_they_add_once_and_are_not_told_as_a_change(
    tmp_path: Path, reads: list[str], said: Callable[[], str]
) -> None:
    folder = image_folder(tmp_path / "photos")
    shutil.copytree(folder / "val", folder / "test")
    val, test = Choices(val_split="val"), Choices(val_split="test")
    first, second = again(folder, tmp_path, choices=val), again(folder, tmp_path, choices=test)
    assert len(reads) == 18 + 6
    assert (again(folder, tmp_path, choices=val), again(folder, tmp_path, choices=test)) == (first, second)
    assert len(reads) == 18 + 6
    assert "is not as it was" not in (text := said())
    assert text.count("its 18 files are unchanged, by size and time") == 2
    (folder / "val" / CLASSES[0] / f"{CLASSES[0]}_0.JPEG").write_bytes(encode(photo(9)))
    assert again(folder, tmp_path, choices=val).prefix != first.prefix
    assert len(reads) == 18 + 6 + 1
    (folder / "test" / CLASSES[0] / f"{CLASSES[0]}_0.JPEG").unlink()
    again(folder, tmp_path, choices=test)
    again(folder, tmp_path, choices=test)
    (folder / "train" / CLASSES[0] / "more.JPEG").write_bytes(encode(photo(5)))
    said()
    again(folder, tmp_path, choices=test)
    assert f"when this machine read it last: 1 new (train/{CLASSES[0]}/more.JPEG)\n" in said()


def test_what_was_read_a_minute_before_a_process_is_killed_is_not_read_again(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, kept = image_folder(tmp_path / "photos"), tmp_path / "kept"
    monkeypatch.setattr("trainer.data.making.revision.hashes.TASK_FILES", 1)
    monkeypatch.setattr("trainer.data.making.revision.hashes.TOLD_FROM", 0)
    monkeypatch.setattr(manifest, "LEDGER_SECONDS", 0.0)

    def keep(count: int) -> None:
        """What lies on the disk while files are read; a SIGTERM would end all here."""
        if len(reads) > 4 and not kept.exists() and (tmp_path / "scratch").exists():
            shutil.copytree(tmp_path / "scratch", kept)

    first = again(folder, tmp_path, workers=1, downloaded=keep)
    shutil.rmtree(tmp_path / "scratch")
    kept.rename(tmp_path / "scratch")
    reads.clear()
    assert again(folder, tmp_path) == first
    assert 0 < len(reads) < 18


def test_what_an_interrupted_writing_of_a_ledger_has_left_is_removed_and_that_of_a_living_one_is_not(
    tmp_path: Path,
) -> None:
    folder = image_folder(tmp_path / "photos")
    again(folder, tmp_path)
    file = next((tmp_path / "scratch").glob("*.arrow"))
    old, new = (file.with_name(f"{file.name}.{number}.part") for number in (7, 8))
    for part in (old, new):
        part.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    again(folder, tmp_path, verify=True)
    assert (old.exists(), new.exists()) == (False, True)


def permit(file: Path) -> None:
    file.chmod(0o600)


def link(file: Path) -> None:
    file.with_name("linked.JPEG").hardlink_to(file)
    file.with_name("linked.JPEG").unlink()


@pytest.mark.parametrize("touch", [permit, link])
def test_a_file_whose_ctime_alone_changes_while_it_is_prepared_is_read_again_and_that_is_all(
    touch: Callable[[Path], None], tmp_path: Path, reads: list[str]
) -> None:
    folder = image_folder(tmp_path / "photos")
    first = prepared(folder, tmp_path / "other")
    reads.clear()
    touched: list[int] = []

    def in_the_first_part(count: int) -> None:
        if not touched:
            touched.append(count)
            touch(folder / FIRST)

    assert again(folder, tmp_path, workers=1, downloaded=lambda count: None, progress=in_the_first_part) == first
    assert reads.count(FIRST) == 2
    assert len(reads) == 19


def test_a_file_that_is_written_under_its_old_time_while_it_is_prepared_is_refused(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "photos")
    file = folder / FIRST
    before, other = file.stat(), bytearray(file.read_bytes())
    other[-3] ^= 1

    def write(count: int) -> None:
        file.write_bytes(other)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))

    with pytest.raises(UserError, match=r"_0.JPEG changed while the data was read \(it was written again\)"):
        again(folder, tmp_path, workers=1, downloaded=lambda count: None, progress=write)


def test_a_chmod_while_a_file_is_hashed_starts_its_reading_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, modes, read = image_folder(tmp_path / "photos"), [0o600, 0o640], os.readv
    first = prepared(folder, tmp_path / "other")

    def and_permit(descriptor: int, buffers: list[memoryview]) -> int:
        if modes and os.fstat(descriptor).st_ino == (folder / FIRST).stat().st_ino:
            (folder / FIRST).chmod(modes.pop())
        return read(descriptor, buffers)

    monkeypatch.setattr(os, "readv", and_permit)
    assert again(folder, tmp_path) == first


@pytest.mark.parametrize("number", [None, "", "uninitialized"])
def test_a_new_container_trusts_the_ledger_where_it_lies_and_a_copy_of_it_is_not_trusted(
    number: str | None, tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "MACHINE_ID", tmp_path / "machine-id")
    if number is not None:
        (tmp_path / "machine-id").write_text(f"{number}\n")
    folder = image_folder(tmp_path / "photos")
    hosts = iter("abcdefgh")
    monkeypatch.setattr("socket.gethostname", lambda: next(hosts))
    first = again(folder, tmp_path)
    assert again(folder, tmp_path) == first
    assert len(reads) == 18
    shutil.copytree(tmp_path / "scratch", tmp_path / "copy")
    shutil.rmtree(tmp_path / "scratch")
    (tmp_path / "copy").rename(tmp_path / "scratch")
    assert again(folder, tmp_path) == first
    assert len(reads) == 36


def test_a_folder_whose_device_has_another_number_after_a_mount_is_not_read_again(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = image_folder(tmp_path / "photos")
    first = again(folder, tmp_path)

    def mounted_again(found: Callable[..., os.stat_result]) -> Callable[..., os.stat_result]:
        def other(*arguments: object, **options: object) -> os.stat_result:
            stat = found(*arguments, **options)
            device = {"st_atime_ns": 0, "st_mtime_ns": stat.st_mtime_ns, "st_ctime_ns": stat.st_ctime_ns}
            return os.stat_result((*stat[:2], stat.st_dev + 1, *stat[3:]), device)

        return other

    monkeypatch.setattr(os, "stat", mounted_again(os.stat))
    monkeypatch.setattr(os, "fstat", mounted_again(os.fstat))
    assert again(folder, tmp_path) == first
    assert len(reads) == 18
