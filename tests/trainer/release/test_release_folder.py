"""A release folder appears whole or not at all, and nobody's files are overwritten."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.checkpoints import RUN
from tests.trainer.release.finished import SMALL, make_store
from trainer.contract import Exit
from trainer.model_card import CARD_FILE, ModelCard
from trainer.release.__main__ import main
from trainer.store import ObjectStore

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ObjectStore:
    return make_store(tmp_path_factory.mktemp("store"), SMALL)


def release(store: ObjectStore, folder: Path, *arguments: str) -> int:
    return main([RUN, "--store", store.uri, "--to", str(folder), "--forms", "torchvision", *arguments])


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
    error: BaseException, code: int, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        stop_at_the_readme(patched, error)
        assert release(store, tmp_path / "tiny") == code
    assert not [*tmp_path.iterdir()]
    assert release(store, tmp_path / "tiny") == Exit.FINISHED
    before = {path.name: path.read_bytes() for path in (tmp_path / "tiny").iterdir()}
    stop_at_the_readme(monkeypatch, error)
    assert release(store, tmp_path / "tiny", "--replace") == code
    assert {path.name: path.read_bytes() for path in (tmp_path / "tiny").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_a_release_is_made_anew_only_where_that_is_asked_for(
    store: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert release(store, tmp_path / "tiny") == Exit.FINISHED
    (tmp_path / "tiny/README.md").write_text("my own words")
    assert release(store, tmp_path / "tiny") == Exit.USER
    assert "add --replace to make it anew" in capsys.readouterr().err
    assert (tmp_path / "tiny/README.md").read_text() == "my own words"
    assert release(store, tmp_path / "tiny", "--replace", "--license", "mit") == Exit.FINISHED
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
    make: Callable[[Path], None], store: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "tiny")
    assert release(store, tmp_path / "tiny", "--replace") == Exit.USER
    assert "is there, and is no release: name another folder with --to" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_a_release_with_somebodys_own_file_is_never_replaced(
    store: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert release(store, tmp_path / "tiny") == Exit.FINISHED
    (tmp_path / "tiny/notes.txt").write_text("years of work")
    assert release(store, tmp_path / "tiny", "--replace") == Exit.USER
    assert "notes.txt" in capsys.readouterr().err
    assert (tmp_path / "tiny/notes.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--license", "Do what you like"), "is no name of a license: write for example apache-2.0 or mit"),
        (("--yes",), "--public and --yes are about an upload: add --push owner/name"),
        (("--forms", "timm"), "write torchvision for both"),
        (("--forms", "tensorflow"), "'tensorflow' is no form"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(
    arguments: tuple[str, ...], told: str, store: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert release(store, tmp_path / "tiny", *arguments) == Exit.USER
    assert told in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]
