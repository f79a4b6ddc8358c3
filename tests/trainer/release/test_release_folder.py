"""A release folder appears whole or not at all, and nobody's files are overwritten."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.checkpoints import RUN
from trainer.contract import Exit
from trainer.model_card import CARD_FILE, ModelCard
from trainer.release.__main__ import main
from trainer.store import ObjectStore

pytestmark = pytest.mark.usefixtures("one_thread")


def release(store: ObjectStore, folder: Path, *arguments: str) -> int:
    return main([RUN, "--store", store.uri, "--to", str(folder), "--forms", "torchvision", *arguments])


def bodies(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stop_at_the_readme(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def write(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("trainer.release.making.readme_text", write)


def test_a_release_has_the_sizes_and_the_folder_that_the_user_says(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert release(store, Path("~/tiny"), "--resize", "48", "--crop", "40") == Exit.FINISHED
    card = ModelCard.from_json((tmp_path / "tiny" / CARD_FILE).read_text())
    assert (card.val_resize, card.val_crop) == (48, 40)


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(("error", "code"), [(FULL, Exit.USER), (KeyboardInterrupt(), 130)])
def test_an_end_before_the_last_file_leaves_nothing_and_the_release_before_whole(
    error: BaseException, code: int, small_store: ObjectStore, small_folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with monkeypatch.context() as patched:
        stop_at_the_readme(patched, error)
        assert release(small_store, tmp_path / "tiny") == code
    assert not [*tmp_path.iterdir()]
    before = bodies(Path(shutil.copytree(small_folder, tmp_path / "tiny")))
    stop_at_the_readme(monkeypatch, error)
    assert release(small_store, tmp_path / "tiny", "--replace") == code
    assert bodies(tmp_path / "tiny") == before
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_a_release_is_made_anew_only_where_that_is_asked_for(
    small_store: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert release(small_store, tmp_path / "tiny") == Exit.FINISHED
    (tmp_path / "tiny/README.md").write_text("my own words")
    assert release(small_store, tmp_path / "tiny") == Exit.USER
    assert "add --replace to make it anew" in capsys.readouterr().err
    assert (tmp_path / "tiny/README.md").read_text() == "my own words"
    assert release(small_store, tmp_path / "tiny", "--replace", "--license", "mit") == Exit.FINISHED
    assert "license: mit" in (tmp_path / "tiny/README.md").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def other_folder(folder: Path) -> None:
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")


def empty_folder(folder: Path) -> None:
    folder.mkdir()


def plain_file(folder: Path) -> None:
    folder.write_text("years of work")


def dangling_link(folder: Path) -> None:
    folder.symlink_to(folder.parent / "nowhere")


@pytest.mark.parametrize("make", [other_folder, empty_folder, plain_file, dangling_link])
def test_what_is_no_release_is_never_replaced(
    make: Callable[[Path], None], small_store: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "tiny")
    assert release(small_store, tmp_path / "tiny", "--replace") == Exit.USER
    assert "is there, and is no release: name another folder with --to" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def own_file(folder: Path) -> None:
    (folder / "notes.txt").write_text("years of work")


def own_folder(folder: Path) -> None:
    (folder / "README.md").unlink()
    (folder / "README.md").mkdir()


def link_elsewhere(folder: Path) -> None:
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to("/etc/hostname")


def pipe(folder: Path) -> None:
    (folder / "model.json").unlink()
    os.mkfifo(folder / "model.json")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (own_file, "notes.txt"),
        (own_folder, "README.md, which is no plain file"),
        (link_elsewhere, "README.md, which is no plain file"),
        (pipe, "model.json, which is no plain file"),
    ],
)
def test_a_release_with_what_no_release_has_is_never_replaced(
    make: Callable[[Path], None], told: str, small_store: ObjectStore, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(copy)
    before = sorted(copy.iterdir())
    assert release(small_store, copy, "--replace") == Exit.USER
    assert f"has what no release has ({told}), so it is left as it is" in capsys.readouterr().err
    assert sorted(copy.iterdir()) == before


def while_it_is_made(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    def write(*arguments: object) -> str:
        happens()
        return "# tiny"

    monkeypatch.setattr("trainer.release.making.readme_text", write)


def after_the_old_one_made_place(monkeypatch: pytest.MonkeyPatch, happens: Callable[[Path], object]) -> None:
    rename = Path.rename

    def rename_and_more(path: Path, target: Path) -> Path:
        found = rename(path, target)
        if target.name == "old":
            happens(target)
        return found

    monkeypatch.setattr(Path, "rename", rename_and_more)


def test_a_file_that_came_while_the_release_was_made_anew_stays(
    small_store: ObjectStore, copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    while_it_is_made(monkeypatch, lambda: own_file(copy))
    before = bodies(copy)
    assert release(small_store, copy, "--replace") == Exit.USER
    assert "has what no release has (notes.txt)" in capsys.readouterr().err
    assert bodies(copy) == before | {"notes.txt": b"years of work"}
    assert [path.name for path in copy.parent.iterdir()] == ["tiny"]


def test_a_file_that_came_in_the_last_moment_is_kept_and_said(
    small_store: ObjectStore, copy: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    after_the_old_one_made_place(monkeypatch, own_file)
    assert release(small_store, copy, "--replace", "--license", "mit") == Exit.FINISHED
    assert "license: mit" in (copy / "README.md").read_text()
    (old,) = copy.parent.glob(".tiny-*/old")
    assert f"note: what was at {copy} before is kept in {old}" in capfd.readouterr().err
    assert bodies(old) == {"notes.txt": b"years of work"}


def test_a_folder_that_takes_the_name_in_the_last_moment_stays_and_so_does_the_old_release(
    small_store: ObjectStore, copy: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before = bodies(copy)
    after_the_old_one_made_place(monkeypatch, lambda old: other_folder(copy))
    assert release(small_store, copy, "--replace") == Exit.USER
    said = capfd.readouterr().err
    assert "it was made meanwhile" in said
    (old,) = copy.parent.glob(".tiny-*/old")
    assert f"note: what was at {copy} before is kept in {old}" in said
    assert bodies(old) == before
    assert bodies(copy) == {"thesis.tex": b"years of work"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--license", "Do what you like"), "is no name of a license: write for example apache-2.0 or mit"),
        (("--yes",), "--public and --yes are about an upload: add --push owner/name"),
        (("--forms", "timm"), "write torchvision for both"),
        (("--forms", "torchvision, timm"), "write torchvision for both"),
        (("--forms", "tensorflow"), "'tensorflow' is no form"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(
    arguments: tuple[str, ...], told: str, small_store: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert release(small_store, tmp_path / "tiny", *arguments) == Exit.USER
    assert told in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]
