"""What of a folder is uploaded, and with which token. What cannot be read is said before the hub is told anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.checkpoints import RUN
from tests.model_hub import WRITER, ModelHub
from tests.trainer.release.finished import NAME, push
from trainer.contract import Exit
from trainer.store import ObjectStore

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_folder_that_is_there_is_pushed_with_the_users_changes(
    models: ModelHub, small_store: ObjectStore, copy: Path, told: Callable[[], str]
) -> None:
    (copy / "README.md").write_text("my own words")
    assert push(small_store, copy, "--yes") == Exit.FINISHED
    assert models.repositories[NAME].files["README.md"] == b"my own words"
    assert "it is uploaded as it is" in told()
    assert push(small_store, copy, "--yes", "--license", "mit") == Exit.USER
    assert "is there, so --license and --forms change nothing: add --replace" in told()
    card = json.loads((copy / "model.json").read_text())
    (copy / "model.json").write_text(json.dumps(card | {"step": 1}))
    assert push(small_store, copy, "--yes") == Exit.USER
    assert f"has other weights than '{RUN}'" in told()


def of_latin_letters(readme: Path) -> None:
    readme.write_bytes("f\u00fcr alle".encode("latin-1"))


def a_link(readme: Path) -> None:
    readme.unlink()
    readme.symlink_to("/etc/hostname")


def a_folder(readme: Path) -> None:
    readme.unlink()
    readme.mkdir()


def without_weights(readme: Path) -> None:
    (readme.parent / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (of_latin_letters, "README.md' cannot be read ('utf-8' codec"),
        (a_link, "README.md, which is no plain file"),
        (a_folder, "README.md, which is no plain file"),
        (Path.unlink, "has no README.md: mend it, or make the release anew with --replace"),
        (without_weights, "has no weights: mend it, or make the release anew with --replace"),
    ],
)
def test_a_folder_that_cannot_be_uploaded_whole_leaves_no_repository(
    change: Callable[[Path], None], message: str, models: ModelHub, small_store: ObjectStore, copy: Path,
    told: Callable[[], str],
) -> None:  # fmt: skip
    change(copy / "README.md")
    assert push(small_store, copy) == Exit.USER
    assert message in told()
    assert not models.repositories
    assert not models.large


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("", "no token was found: make a token that may write at"),
        (
            "hf_wrong",
            "refused the token (401, 'Invalid credentials in Authorization header'): it is wrong or has expired",
        ),
        ("hf_\u00fcber", "the token has letters that none has (it is not shown)"),
    ],
)
def test_a_token_that_does_not_open_the_hub_is_said_before_anything_is_made(
    token: str, message: str, models: ModelHub, small_store: ObjectStore, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, told: Callable[[], str],
) -> None:  # fmt: skip
    monkeypatch.setenv("HF_TOKEN", token)
    assert push(small_store, tmp_path / "tiny") == Exit.USER
    text = told()
    assert message in text
    assert not token or token not in text
    assert not (tmp_path / "tiny").exists()


def test_the_token_of_the_secrets_folder_counts(
    models: ModelHub, small_store: ObjectStore, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    (tmp_path / "hf_token").write_text(f"{WRITER}\n")
    assert push(small_store, copy, "--secrets-dir", str(tmp_path)) == Exit.FINISHED


def a_file_of_bytes(file: Path) -> None:
    file.write_bytes(b"hf_\xff\xfe")


@pytest.mark.parametrize(("make", "why"), [(a_file_of_bytes, "it is no text"), (Path.mkdir, "Is a directory")])
def test_a_token_that_cannot_be_read_is_said(
    make: Callable[[Path], None], why: str, models: ModelHub, small_store: ObjectStore, tmp_path: Path,
    told: Callable[[], str],
) -> None:  # fmt: skip
    make(tmp_path / "hf_token")
    assert push(small_store, tmp_path / "tiny", "--secrets-dir", str(tmp_path)) == Exit.USER
    assert f"the token in '{tmp_path}/hf_token' cannot be read ({why}): mend or remove that file" in told()
    assert not models.requests


def test_the_token_is_in_no_file_of_the_release_or_of_the_hub(
    models: ModelHub, small_store: ObjectStore, tmp_path: Path
) -> None:
    assert push(small_store, tmp_path / "tiny") == Exit.FINISHED
    sent = [*models.repositories[NAME].files.values(), *models.large.values()]
    made = [path.read_bytes() for path in (tmp_path / "tiny").iterdir()]
    assert len(sent) > len(made) > 2
    assert not [body for body in [*sent, *made] if WRITER.encode() in body]
    assert WRITER not in " ".join([*models.requests, *models.repositories[NAME].commits])
