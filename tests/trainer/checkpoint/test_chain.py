"""Checkpoints against a forger, whose objects and manifests have right CRCs: HEAD.json knows their SHA-256."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import RUN, file_of, note, owner, same, send, state
from trainer.checkpoint import restore as reading
from trainer.checkpoint.restore import restore
from trainer.checkpoints import main
from trainer.contract import HEAD_FILE, Exit, Lease, attempt_key, checkpoint_key, manifest_key, seal, unseal
from trainer.manifest import data_key
from trainer.store import ObjectStore, open_store
from trainer.store.checksum import Checksums, crc64
from trainer.upload.commit import Commit
from trainer.upload.owner import Ownership

HEAD = checkpoint_key(RUN, HEAD_FILE)


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    """The store of a run with steps 1 to 4, of which none is retired."""
    (tmp_path / "store").mkdir()
    store = open_store(str(tmp_path / "store"))
    ownership = owner(store, 1, tmp_path)
    ownership.claim(print, lambda before: None)
    for step in (1, 2, 3, 4):
        save(ownership, step)
    ownership.release()
    return store


def save(ownership: Ownership, step: int) -> Commit:
    sent = send(
        ownership.store, ownership.attempt, note(step, ownership.attempt), state(step), ownership.parent_of(step)
    )
    ownership.commit(sent.key, sent.sha256, is_best=False)
    return sent


def forge(store: ObjectStore, step: int) -> None:
    """Other weights under the name of a step, with checksums that are right."""
    key, body = manifest_key(RUN, step, 1), file_of(state(66))
    manifest = unseal(store.get(key))
    manifest["object"] |= Checksums.of(body).to_json()
    store.put(data_key(key), bytes(body))
    store.put(key, seal(manifest))


def change(store: ObjectStore, key: str, **values: Any) -> None:
    """Write a sealed file anew with other values; None takes one away."""
    changed = unseal(store.get(key)) | values
    store.put(key, seal({name: value for name, value in changed.items() if value is not None}))


def restored(store: ObjectStore) -> tuple[int, list[str], bool]:
    """The step that is taken over with its own weights, why newer ones are not, and whether it is vouched for."""
    tensors = state(9)
    found, skipped = restore(store, RUN, tensors)
    assert found is not None
    assert same(tensors, state(found.step))
    assert found.sha256 == hashlib.sha256(store.get(found.key)).hexdigest()
    return found.step, skipped, found.is_vouched


def test_the_head_knows_the_manifest_and_each_manifest_the_one_before(store: ObjectStore) -> None:
    lease = Lease.from_json(store.get(HEAD))
    known, key = lease.sha256[lease.newest], lease.newest
    for step in (4, 3, 2, 1):
        body = store.get(key)
        assert (key, known) == (manifest_key(RUN, step, 1), hashlib.sha256(body).hexdigest())
        assert unseal(body)["object"]["sha256"] == hashlib.sha256(store.get(data_key(key))).hexdigest()
        parent = unseal(body)["parent"]
        key, known = parent.get("manifest", ""), parent.get("sha256", "")
    assert (key, known) == ("", "")


def test_forged_weights_with_right_checksums_are_skipped_and_said(store: ObjectStore) -> None:
    forge(store, 4)
    step, (said,), is_vouched = restored(store)
    assert (step, is_vouched) == (3, True)
    assert "step-00000004.1.json: its manifest has SHA-256" in said


def test_an_object_with_the_same_crc_and_other_bytes_is_skipped(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = data_key(manifest_key(RUN, 4, 1))
    honest, forged = store.get(key), bytes(file_of(state(66)))
    right = crc64(memoryview(honest))
    monkeypatch.setattr(reading, "crc64", lambda part: right if bytes(part) == forged else crc64(part))
    store.put(key, forged)
    step, (said,), _ = restored(store)
    assert step == 3
    assert "its object has SHA-256" in said


def test_the_chain_reaches_beyond_what_the_head_names(store: ObjectStore) -> None:
    for step in (4, 3):
        store.put(data_key(manifest_key(RUN, step, 1)), b"damaged")
    forge(store, 2)
    step, skipped, is_vouched = restored(store)
    assert (step, len(skipped), is_vouched) == (1, 3, False), "the forged one does not vouch for it"
    assert "step-00000002.1.json: its manifest has SHA-256" in skipped[-1]


def test_a_checkpoint_that_nothing_newer_knows_is_a_last_resort_and_that_is_said(store: ObjectStore) -> None:
    for step in (4, 3):
        store.put(manifest_key(RUN, step, 1), b"damaged")
    assert restored(store)[::2] == (2, False)


def test_a_run_of_an_older_version_continues_and_its_next_checkpoint_is_known(
    store: ObjectStore, tmp_path: Path
) -> None:
    change(store, HEAD, sha256=None)
    for step in (1, 2, 3, 4):
        key = manifest_key(RUN, step, 1)
        sums = {name: value for name, value in unseal(store.get(key))["object"].items() if name != "sha256"}
        change(store, key, parent=None, object=sums)
    assert restored(store) == (4, [], True)
    ownership = owner(store, 2, tmp_path)
    ownership.claim(print, lambda before: None)
    sent = save(ownership, 5)
    assert Lease.from_json(store.get(HEAD)).sha256 == {sent.key: sent.sha256}
    assert restored(store) == (5, [], True)
    forge_key = manifest_key(RUN, 5, 2)
    change(store, forge_key, time=1.0)
    assert restored(store)[0] == 4


def test_what_an_older_version_has_stored_of_a_checkpoint_is_the_same_checkpoint(store: ObjectStore) -> None:
    body = file_of(state(4))
    commit = Commit.of(RUN, 1, note(4)["manifest"], Checksums.of(body), {})
    sums = {name: value for name, value in unseal(store.get(commit.key))["object"].items() if name != "sha256"}
    change(store, commit.key, object=sums)
    assert commit.is_stored(store)
    other = Checksums.of(file_of(state(5)))
    assert not Commit.of(RUN, 1, note(4)["manifest"], other, {}).is_stored(store)
    assert not Commit.of(RUN, 1, note(7)["manifest"], other, {}).is_stored(store)


def test_a_manifest_that_the_head_never_named_is_taken_over_and_doubted_until_the_run_goes_on(
    store: ObjectStore, tmp_path: Path
) -> None:
    forged = send(store, 1, note(5), state(5), {})
    told = f"HEAD.json did not name step 5, SHA-256 {forged.sha256[:16]}: taken over, compare it with the log"
    for attempt, said in ((2, [told]), (3, [])):
        heard: list[str] = []
        ownership = owner(store, attempt, tmp_path)
        ownership.claim(heard.append, lambda before: None)
        assert heard == said
        assert restored(store) == (5, [], False)
        if attempt == 2:
            ownership.release()
    sent = save(ownership, 6)
    assert restored(store) == (6, [], True)
    assert unseal(store.get(sent.key))["parent"] == {"manifest": forged.key, "sha256": forged.sha256}


def test_export_and_rewind_of_a_step_read_the_chain_and_say_what_nothing_vouches_for(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("STORE", store.uri), ("RUN_ID", RUN), ("SCRATCH_DIR", str(tmp_path))):
        monkeypatch.setenv(f"TRAINER_{name}", value)
    export = ["export", str(tmp_path / "x"), "--weights", "model", "--step", "1"]
    assert main(export) == Exit.FINISHED
    assert "compare it with the log" in (said := "".join(capfd.readouterr()))
    assert "neither HEAD.json" not in said
    store.put(attempt_key(RUN, 1), b"{}")
    honest = store.get(manifest_key(RUN, 1, 1))
    forge(store, 1)
    for words in (export, ["rewind", "1"]):
        assert main(words) == Exit.USER
        assert "its manifest has SHA-256" in "".join(capfd.readouterr())
    store.put(manifest_key(RUN, 1, 1), honest)
    store.put(data_key(manifest_key(RUN, 1, 1)), bytes(file_of(state(1))))
    store.put(manifest_key(RUN, 2, 1), b"damaged")
    for words in (export, ["rewind", "1"]):
        assert main(words) == Exit.FINISHED
        said = "".join(capfd.readouterr())
        assert "which neither HEAD.json nor a newer one has: compare it with the log" in said
    copy = hashlib.sha256(store.get(manifest_key(RUN, 1, 2))).hexdigest()
    assert f"storing step 1, SHA-256 {copy[:16]}" in said
