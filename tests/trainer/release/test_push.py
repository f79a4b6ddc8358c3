"""A push uploads a release as one commit, private, asks before it overwrites, and says why a hub refuses."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch

from tests.checkpoints import RUN
from tests.hub import Answer
from tests.model_hub import ModelHub, Repository
from tests.trainer.release.finished import NAME, push, release
from trainer.contract import Exit
from trainer.scoring.members import open_member
from trainer.store import ObjectStore

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_release_is_one_commit_of_a_private_repository(
    models: ModelHub, small_store: ObjectStore, tmp_path: Path, told: Callable[[], str]
) -> None:
    assert push(small_store, tmp_path / "tiny") == Exit.FINISHED
    made = models.repositories[NAME]
    assert made.is_private
    assert len(made.commits) == 1
    folder = {path.name: path.read_bytes() for path in (tmp_path / "tiny").iterdir()}
    assert {name: body for name, body in made.files.items() if name != ".gitattributes"} == folder
    assert f"pushed to {models.endpoint}/{NAME}, private, as one commit: {models.endpoint}/{NAME}/commit/" in told()


def test_timm_loads_what_was_pushed_by_the_lines_of_the_readme_there(
    models: ModelHub, store: ObjectStore, folder: Path
) -> None:
    assert push(store, folder) == Exit.FINISHED
    readme = models.repositories[NAME].files["README.md"].decode()
    assert f'timm.create_model("hf-hub:{NAME}", pretrained=True)' in readme
    assert "download the files, and go to their folder" in readme
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        theirs = timm.create_model(f"hf-hub:{NAME}", pretrained=True).eval()(images)
        assert (theirs - open_member(RUN, store).model(images)).abs().max() <= 1e-4


def test_nothing_is_asked_of_the_hub_where_no_push_was_typed(
    models: ModelHub, small_store: ObjectStore, tmp_path: Path
) -> None:
    assert release(small_store, tmp_path / "tiny", "--forms", "torchvision") == Exit.FINISHED
    assert models.requests == []


def present(models: ModelHub, *, is_private: bool = True) -> Repository:
    files = {".gitattributes": b"", "README.md": b"old", "model.onnx": b"old", "photo.png": b"mine"}
    models.repositories[NAME] = Repository(is_private, files=files)
    return models.repositories[NAME]


def test_what_is_there_is_overwritten_only_with_yes(
    models: ModelHub, small_store: ObjectStore, tmp_path: Path, told: Callable[[], str]
) -> None:
    there = present(models)
    assert push(small_store, tmp_path / "tiny") == Exit.USER
    assert "is there, with 3 files (README.md, model.onnx, photo.png): add --yes to overwrite them" in told()
    assert not (tmp_path / "tiny").exists()
    assert not there.commits
    assert push(small_store, tmp_path / "tiny", "--yes") == Exit.FINISHED
    assert there.files["README.md"] != b"old"
    assert there.files["photo.png"] == b"mine"
    assert "model.onnx" not in there.files  # it would be of other weights
    assert len(there.commits) == 1


class Typing(io.StringIO):
    """A terminal at which somebody types."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("answer", "code"), [("yes\n", Exit.FINISHED), ("y\n", Exit.USER), ("", Exit.USER)])
def test_at_a_terminal_the_user_is_asked(
    answer: str, code: int, models: ModelHub, small_store: ObjectStore, copy: Path, monkeypatch: pytest.MonkeyPatch,
    told: Callable[[], str],
) -> None:  # fmt: skip
    there = present(models)
    monkeypatch.setattr("sys.stdin", Typing(answer))
    assert push(small_store, copy) == code
    assert "Overwrite them? Type yes:" in told()
    assert len(there.commits) == (code == Exit.FINISHED)


def test_a_public_repository_gets_weights_only_where_public_was_typed(
    models: ModelHub, small_store: ObjectStore, copy: Path, told: Callable[[], str]
) -> None:
    there = present(models, is_private=False)
    assert push(small_store, copy, "--yes") == Exit.USER
    assert "is public, so everybody would see these weights: add --public if you mean that" in told()
    assert not there.commits
    assert push(small_store, copy, "--yes", "--public") == Exit.FINISHED
    assert ", public, as one commit" in told()
    there.is_private = True
    assert push(small_store, copy, "--yes", "--public") == Exit.FINISHED
    assert ", private, as one commit" in told()  # as it was made


def says(status: int, message: str = "", at: str = "") -> Callable[[str, str], Answer | None]:
    """A fault of requests whose path has `at`; of all that write."""
    headers = {"X-Error-Message": message} if message else {}

    def answer(method: str, path: str) -> Answer | None:
        return (status, headers, b"") if method != "GET" and at in path else None

    return answer


def changes(models: ModelHub) -> Callable[[str, str], Answer | None]:
    """Somebody commits just before this commit."""

    def change(method: str, path: str) -> Answer | None:
        if "/commit/" in path:
            models.repositories[NAME].commit = "f" * 40
        return None

    return change


REFUSALS = {
    "forbidden": (says(403, "read token", "create"), "forbids this (403, 'read token'): the token may not write there"),
    "taken": (says(409, "exists", "create"), "the name is taken, and this token may not see by what (409, 'exists')"),
    "full": (says(402, "Storage limit reached", "/commit/"), "answered 402, 'Storage limit reached': look at"),
    "busy": (says(429, "", "create"), "has had too many requests (429): wait"),
    "broken": (says(500, "", "/large/"), "has a fault of its own (500): wait"),
    "no hub": (lambda method, path: (200, {}, b"<html>log in</html>"), "answered with what is not the hub's"),
}


@pytest.mark.parametrize("why", REFUSALS)
def test_a_hub_that_refuses_is_one_message_and_the_folder_stays(
    why: str, models: ModelHub, small_store: ObjectStore, tmp_path: Path, told: Callable[[], str]
) -> None:
    models.fault, message = REFUSALS[why]
    assert push(small_store, tmp_path / "tiny") == Exit.USER
    text = told()
    assert f"error: --push {NAME}: " in text
    assert message in text
    assert (tmp_path / "tiny/model.safetensors").exists() == (why != "no hub")  # which was asked before
    models.fault = lambda method, path: None
    assert push(small_store, tmp_path / "tiny") == Exit.FINISHED


def test_a_commit_of_somebody_else_meanwhile_is_not_overwritten(
    models: ModelHub, small_store: ObjectStore, copy: Path, told: Callable[[], str]
) -> None:
    there = present(models)
    models.fault = changes(models)
    assert push(small_store, copy, "--yes") == Exit.USER
    assert "somebody has changed" in told()
    assert there.files["README.md"] == b"old"


def test_a_readme_that_the_hub_does_not_take_is_said(
    models: ModelHub, small_store: ObjectStore, tmp_path: Path, told: Callable[[], str]
) -> None:
    wrong = json.dumps({"errors": [{"message": '"license" must be one of [apache-2.0, ...]'}], "warnings": []})
    models.fault = lambda method, path: (400, {}, wrong.encode()) if path == "/api/validate-yaml" else None
    assert push(small_store, tmp_path / "tiny", "--license", "beerware") == Exit.USER
    text = told()
    assert '"license" must be one of' in text
    assert "another --license may be what it wants" in text


def test_names_and_addresses_that_cannot_be_are_refused(
    models: ModelHub, small_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Callable[[], str]
) -> None:
    assert push(small_store, tmp_path / "tiny", name="tiny") == Exit.USER
    assert "'tiny' is no name of the hub: write owner/name" in told()
    assert push(small_store, tmp_path / "tiny", name="foreign/tiny") == Exit.USER
    assert 'forbids this (403, "You don\'t have the rights to create a model under foreign/tiny")' in told()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://hub.example")
    assert push(small_store, tmp_path / "tiny") == Exit.USER
    assert "is not asked, since a token would travel without TLS" in told()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert push(small_store, tmp_path / "tiny") == Exit.USER
    assert "cannot be reached" in told()
