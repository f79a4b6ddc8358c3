"""Where exported files go: they appear together or not at all, and what is there is kept."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.trainer.export.weights import member
from trainer.contract import UserError
from trainer.export.agreement import Difference, Sample
from trainer.export.forms import WeightForm, write_forms
from trainer.scoring.members import Member

SMALL = "shufflenet_v2_x0_5"
pytestmark = pytest.mark.usefixtures("one_thread")


def form(ending: str, then: Callable[[Path], object] = lambda folder: None) -> WeightForm:
    """Writes `new`; `then` is what others do meanwhile to the folder that the user named."""

    def write(member: Member, sample: Sample, file: Path) -> Difference:
        file.write_text("new")
        then(file.parent.parent)
        return Difference(0.0, 1.0)

    return WeightForm(ending, "a file", f".{ending}", write, lambda card: "")


def texts(folder: Path) -> dict[str, str]:
    return {path.suffix[1:]: path.read_text() if path.is_file() else "folder" for path in folder.iterdir()}


def test_a_folder_in_place_of_a_file_is_refused_before_anything_is_replaced(tmp_path: Path) -> None:
    (tmp_path / f"{SMALL}.one").write_text("old")
    (tmp_path / f"{SMALL}.two").mkdir()
    with pytest.raises(UserError, match=r"two is a folder, a link or a device, not a file: name another folder"):
        write_forms(member(SMALL), tmp_path, (form("one"), form("two")), replace=True)
    assert texts(tmp_path) == {"one": "old", "two": "folder"}


def test_a_file_that_appears_meanwhile_is_kept_and_no_other_appears(tmp_path: Path) -> None:
    forms = (form("one"), form("two", lambda folder: (folder / f"{SMALL}.two").write_text("theirs")))
    with pytest.raises(UserError, match="two: there already; name another folder"):
        write_forms(member(SMALL), tmp_path, forms)
    assert texts(tmp_path) == {"two": "theirs"}


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("replace", [False, True])
def test_what_stops_between_two_files_leaves_the_folder_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException, replace: bool
) -> None:
    if replace:
        (tmp_path / f"{SMALL}.one").write_text("old")
    link = os.link

    def stopping(source: Path, target: Path) -> None:
        if target == tmp_path / f"{SMALL}.two":
            raise stop
        link(source, target)

    monkeypatch.setattr(os, "link", stopping)
    with pytest.raises((KeyboardInterrupt, UserError)):
        write_forms(member(SMALL), tmp_path, (form("one"), form("two")), replace=replace)
    assert texts(tmp_path) == ({"one": "old"} if replace else {})


def test_a_file_that_appears_at_the_last_moment_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def late(source: Path, target: Path) -> None:
        if target.suffix == ".two":
            target.write_text("theirs")
        link(source, target)

    monkeypatch.setattr(os, "link", late)
    with pytest.raises(UserError, match="two appeared while it was made; nothing was written: run the command again"):
        write_forms(member(SMALL), tmp_path, (form("one"), form("two")))
    assert texts(tmp_path) == {"two": "theirs"}


def test_with_replace_new_files_take_the_place_of_old_ones(tmp_path: Path) -> None:
    (tmp_path / f"{SMALL}.one").write_text("old")
    write_forms(member(SMALL), tmp_path, (form("one"), form("two")), replace=True)
    assert texts(tmp_path) == {"one": "new", "two": "new"}
