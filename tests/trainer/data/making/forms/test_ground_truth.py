"""Files that say the classes of a flat validation: several of them agree, and archives have each image once."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from tests.images import CLASSES, encode, photo
from tests.trainer.data.making.forms.test_folders import TRUTHS, WANTED, archives, devkit_archive, flat
from trainer.contract import UserError
from trainer.data.making.forms.sources import open_source
from trainer.data.making.layout import Choices


@pytest.mark.parametrize("other", ["devkit", "archive", "valprep", "synsets", "tiny"])
def test_files_that_say_other_classes_of_the_same_images_are_refused(other: str, tmp_path: Path) -> None:
    folder = flat(tmp_path)
    TRUTHS["kaggle"](folder)
    TRUTHS[other](folder)
    source = open_source(str(folder))
    assert source.splits["val"].labels.tolist() == WANTED
    assert "LOC_val_solution.csv" in source.said[1]
    assert source.said[1].count(",") >= 1
    table = folder / "LOC_val_solution.csv"
    table.write_text(table.read_text().replace(f"00000002,{CLASSES[0]}", f"00000002,{CLASSES[1]}"))
    with pytest.raises(
        UserError,
        match=r"LOC_val_solution.csv and \S+ say different classes of 1 validation images \(such as "
        r"ILSVRC2012_val_00000002: 'n01443537' and 'n01440764'\): remove the wrong one",
    ):
        open_source(str(folder))


@pytest.mark.parametrize("truth", ["devkit", "kaggle", "valprep", "synsets", "tiny"])
def test_a_file_that_windows_has_written_says_the_same(truth: str, tmp_path: Path) -> None:
    folder = flat(tmp_path)
    TRUTHS[truth](folder)
    for file in (file for file in folder.rglob("*") if file.suffix in (".csv", ".txt", ".sh")):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert open_source(str(folder)).splits["val"].labels.tolist() == WANTED


def append(archive: Path, name: str, content: bytes) -> None:
    """As `tar --append` does, which leaves an older member of that name where it is."""
    with tarfile.open(archive, "a") as members:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        members.addfile(member, io.BytesIO(content))


def test_an_archive_that_has_an_image_twice_is_refused(tmp_path: Path) -> None:
    archives(tmp_path)
    devkit_archive(tmp_path, of_train=2)
    name = "ILSVRC2012_val_00000003.JPEG"
    append(tmp_path / "ILSVRC2012_img_val.tar", name, encode(photo(99)))
    with pytest.raises(UserError, match=f"ILSVRC2012_img_val.tar has {name} twice, and either may be meant: fetch"):
        open_source(str(tmp_path))


def test_an_archive_that_has_a_class_twice_is_refused(tmp_path: Path) -> None:
    archives(tmp_path)
    devkit_archive(tmp_path, of_train=2)
    with tarfile.open(tmp_path / "ILSVRC2012_img_train.tar") as members:
        inner = members.extractfile(f"{CLASSES[1]}.tar")
        assert inner is not None
        content = inner.read()
    append(tmp_path / "ILSVRC2012_img_train.tar", f"{CLASSES[1]}.tar", content)
    with pytest.raises(UserError, match=rf"ILSVRC2012_img_train.tar has {CLASSES[1]}.tar twice"):
        open_source(str(tmp_path))


def test_a_hole_in_an_archive_is_refused_or_accepted_and_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As a download leaves it that has reserved its room. Python takes zeros for the end of an archive."""
    archives(tmp_path)
    TRUTHS["kaggle"](tmp_path)
    file = tmp_path / "ILSVRC2012_img_train.tar"
    file.write_bytes(file.read_bytes() + bytes(20 * 512))
    with pytest.raises(UserError, match=r"ILSVRC2012_img_train.tar has [\d,]+ zeros from byte .*--accept-incomplete"):
        open_source(str(tmp_path))
    assert len(open_source(str(tmp_path), Choices(accept_incomplete=True)).splits["train"]) == 6
    assert "which may be a hole in it; that is accepted" in capfd.readouterr().err


def test_an_archive_that_is_cut_between_two_images_is_refused(tmp_path: Path) -> None:
    archives(tmp_path)
    TRUTHS["kaggle"](tmp_path)
    file = tmp_path / "ILSVRC2012_img_val.tar"
    with tarfile.open(file) as members:
        last = members.getmembers()[-1]
    file.write_bytes(file.read_bytes()[: last.offset])
    with pytest.raises(UserError, match=r"ILSVRC2012_img_val.tar is cut at byte"):
        open_source(str(tmp_path))
