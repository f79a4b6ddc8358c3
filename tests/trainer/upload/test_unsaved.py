"""What could not be stored and was kept on this machine: stored once, whole, by the next attempt, or left alone."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import RUN, commit, file_of, note, owning, state
from trainer.contract import Lease, RunEnv, manifest_key
from trainer.store import ObjectStore, open_store
from trainer.upload.unsaved import resend, save_checkpoint_here, save_file_here, unsaved_dir


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    (tmp_path / "store").mkdir()
    return open_store(str(tmp_path / "store"))


def env(store: ObjectStore, tmp_path: Path, attempt: int) -> RunEnv:
    return RunEnv(store=store.uri, run_id=RUN, scratch_dir=str(tmp_path / "scratch"), attempt=str(attempt))


def resent(by: RunEnv, store: ObjectStore, lease: Lease | None) -> list[str]:
    """What the next attempt says while it stores what was kept."""
    said: list[str] = []
    resend(by, store, lease, said.append)
    return said


def kept(store: ObjectStore, tmp_path: Path, attempt: int = 1, step: int = 7) -> Path:
    save_file_here(env(store, tmp_path, attempt), f"runs/{RUN}/metrics/{attempt}/a.jsonl", b"rows")
    return save_checkpoint_here(env(store, tmp_path, attempt), note(step, attempt), file_of(state(1)))


def test_it_is_stored_by_the_next_attempt_and_then_gone(store: ObjectStore, tmp_path: Path) -> None:
    folder = kept(store, tmp_path)
    digest, stored = resent(env(store, tmp_path, 2), store, Lease(attempt=1))
    sha256 = hashlib.sha256(store.get(manifest_key(RUN, 7, 1))).hexdigest()
    assert digest == f"storing step 7, SHA-256 {sha256[:16]}"
    assert stored == "stored the checkpoint of step 7 that attempt 1 could not store"
    assert store.get(f"runs/{RUN}/metrics/1/a.jsonl") == b"rows"
    assert store.info(manifest_key(RUN, 7, 1)).bytes
    assert not folder.exists()
    assert not resent(env(store, tmp_path, 2), store, Lease(attempt=1))


@pytest.mark.parametrize("damage", ["a bit", "truncated", "missing", "empty"])
def test_a_copy_that_was_damaged_is_said_and_never_stored(damage: str, store: ObjectStore, tmp_path: Path) -> None:
    folder = kept(store, tmp_path)
    data = folder / "checkpoint.safetensors"
    body = bytearray(data.read_bytes())
    if damage == "a bit":
        body[-1] ^= 1
    data.write_bytes({"a bit": bytes(body), "truncated": bytes(body[:-1]), "empty": b""}.get(damage, b""))
    if damage == "missing":
        data.unlink()
    (said,) = resent(env(store, tmp_path, 2), store, Lease(attempt=1))
    assert "its bytes are damaged: not stored" in said
    assert not list(store.list("checkpoints/"))
    assert folder.exists()


def test_one_that_was_not_kept_completely_does_not_count(store: ObjectStore, tmp_path: Path) -> None:
    folder = kept(store, tmp_path)
    (folder / "checkpoint.json").write_text("")
    assert not resent(env(store, tmp_path, 2), store, Lease(attempt=1))
    assert not list(store.list("checkpoints/"))


def test_what_the_run_went_on_without_is_left_alone_unless_it_is_older(store: ObjectStore, tmp_path: Path) -> None:
    with owning(store, 2, tmp_path) as ownership:
        commit(ownership, 5, state(2))
        newer, older = kept(store, tmp_path, step=7), env(store, tmp_path, 1)
        (said,) = resent(env(store, tmp_path, 3), store, ownership.written)
        assert "holds step 7 of attempt 1, but the run went on without it" in said
        assert newer.exists()
        save_checkpoint_here(older, note(4), file_of(state(3)))
        assert not resent(env(store, tmp_path, 3), store, ownership.written)
        assert not unsaved_dir(older).exists()
    assert len(list(store.list(f"checkpoints/{RUN}/manifest/"))) == 1


def test_a_store_of_another_name_and_a_run_that_began_anew_do_not_get_it(store: ObjectStore, tmp_path: Path) -> None:
    folder = kept(store, tmp_path)
    (tmp_path / "other").mkdir()
    other = open_store(str(tmp_path / "other"))
    assert not resent(env(other, tmp_path, 2), other, Lease(attempt=1))
    said: list[Any] = resent(env(store, tmp_path, 1), store, None)
    assert len(said) == 1
    assert not list(other.list("checkpoints/"))
    assert not list(store.list("checkpoints/"))
    assert folder.exists()
