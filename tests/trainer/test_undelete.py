"""Checkpoints that somebody deleted, overwrote or tagged come back from the bucket's old versions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.checkpoints import RUN, commit, owning, state
from tests.emulator.s3 import Control
from tests.stores import bucket_and_prefix
from trainer.checkpoints import main
from trainer.contract import HEAD_FILE, Exit, Lease, checkpoint_key, manifest_key, snapshot_key
from trainer.store import ObjectStore, open_store

TAG = {"TagSet": [{"Key": "superseded", "Value": "true"}]}
HEAD = checkpoint_key(RUN, HEAD_FILE)
Command = Callable[..., tuple[int, str, str]]


class Bucket:
    """A run of three checkpoints in a bucket with versions, and what an attacker does to it."""

    def __init__(self, uri: str, machine: Path) -> None:
        self.name, self.prefix = bucket_and_prefix(uri)
        self.machine = machine
        self.s3: Any = boto3.session.Session().client("s3")
        versions: Any = {"Status": "Enabled"}
        self.s3.put_bucket_versioning(Bucket=self.name, VersioningConfiguration=versions)
        self.store = open_store(uri)
        with owning(self.store, 1, machine) as ownership:
            for step in (1, 2, 3):
                commit(ownership, step, state(step))

    def place(self, key: str) -> dict[str, str]:
        return {"Bucket": self.name, "Key": f"{self.prefix}/{key}"}

    def delete(self, key: str) -> None:
        self.s3.delete_object(**self.place(key))

    def tag(self, key: str) -> None:
        self.s3.put_object_tagging(**self.place(key), Tagging=TAG)

    def tags(self, key: str) -> list[dict[str, str]]:
        return list(self.s3.get_object_tagging(**self.place(key))["TagSet"])

    def bodies(self) -> dict[str, bytes]:
        return {info.key: self.store.get(info.key) for info in self.store.list(checkpoint_key(RUN, ""))}


@pytest.fixture
def bucket(s3_uri: str, tmp_path: Path) -> Bucket:
    return Bucket(s3_uri, tmp_path)


@pytest.fixture
def undelete(bucket: Bucket, capsys: pytest.CaptureFixture[str]) -> Command:
    return lambda *options: run(bucket.store, capsys, *options)


def run(store: ObjectStore, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str, str]:
    code = main(["--store", store.uri, "--run-id", RUN, "undelete", *options])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_what_was_deleted_or_overwritten_is_back_and_a_second_time_there_is_nothing_to_do(
    bucket: Bucket, undelete: Command
) -> None:
    before = bucket.bodies()
    manifest, data, forged = manifest_key(RUN, 3, 1), snapshot_key(RUN, 3, 1), snapshot_key(RUN, 2, 1)
    bucket.delete(manifest)
    bucket.delete(manifest)  # one mark upon another
    bucket.delete(data)
    bucket.delete(HEAD)
    bucket.store.put(forged, bytes(len(before[forged])))  # as large as it was
    bucket.store.put(manifest_key(RUN, 2, 1), b"{}")
    bucket.delete(manifest_key(RUN, 2, 1))  # overwritten, then deleted
    assert bucket.bodies() != before

    code, said, _ = undelete("--dry-run")
    assert (code, said.count("would bring back")) == (Exit.FINISHED, 5)
    assert bucket.bodies() != before
    code, said, _ = undelete()
    assert code == Exit.FINISHED
    assert bucket.bodies() == before
    for key, how in ((HEAD, "deleted"), (manifest, "deleted"), (data, "deleted"), (forged, "overwritten")):
        assert f"brought back  {bucket.store.describe(key)}: {how}" in said
    assert "5 brought back: `verify --every` compares" in said
    code, said, _ = undelete()
    assert (code, said) == (Exit.FINISHED, f"nothing of run {RUN!r} is lost that an old version could bring back\n")


def test_a_head_that_is_damaged_is_as_it_was_when_it_was_last_whole(bucket: Bucket, undelete: Command) -> None:
    before = bucket.store.get(HEAD)
    bucket.store.put(HEAD, b"{}")
    bucket.store.put(HEAD, b"nothing")
    assert "HEAD.json: damaged; as of " in undelete()[1]
    assert bucket.store.get(HEAD) == before


def test_a_tag_on_what_the_run_still_needs_is_removed_even_after_it_expired(bucket: Bucket, undelete: Command) -> None:
    before = bucket.bodies()
    named = Lease.from_json(bucket.store.get(HEAD)).keys()
    assert len(named) == 2
    for key in (manifest_key(RUN, 3, 1), snapshot_key(RUN, 3, 1), manifest_key(RUN, 2, 1)):
        bucket.tag(key)
    bucket.delete(manifest_key(RUN, 3, 1))  # as the lifecycle does it to what has the tag
    said = undelete()[1]
    assert said.count("tagged as superseded, and it is not") == 3
    assert bucket.bodies() == before
    assert [bucket.tags(key) for key in sorted(named)] == [[], []]
    assert "nothing of run" in undelete()[1]


def test_what_the_run_itself_gave_up_comes_back_only_if_asked_for(bucket: Bucket, undelete: Command) -> None:
    before = bucket.bodies()
    given_up = (manifest_key(RUN, 1, 1), snapshot_key(RUN, 1, 1))
    for key in given_up:
        assert bucket.tags(key)
        bucket.delete(key)  # as the lifecycle does
    code, said, _ = undelete()
    assert "2 objects that the run had superseded have expired; `undelete --every` brings" in said
    assert "nothing of run" in said
    code, said, _ = undelete("--every")
    assert (code, said.count("brought back  ")) == (Exit.FINISHED, 2)
    assert bucket.bodies() == before
    assert all(bucket.tags(key) for key in given_up)  # so they expire again


def test_an_object_that_somebody_wrote_first_is_not_the_true_one(bucket: Bucket, undelete: Command) -> None:
    """The keys can be guessed, and a run overwrites what lies there."""
    key, manifest = snapshot_key(RUN, 4, 2), manifest_key(RUN, 4, 2)
    bucket.store.put(key, b"forged")
    with owning(bucket.store, 2, bucket.machine) as ownership:
        commit(ownership, 4, state(4))
    before = bucket.bodies()
    assert "nothing of run" in undelete()[1]
    assert bucket.bodies() == before
    bucket.delete(key)
    bucket.store.put(key, b"forged once more")
    bucket.store.put(manifest, b"{}")
    code, said, _ = undelete()
    assert (code, said.count("brought back  ")) == (Exit.FINISHED, 2)
    assert bucket.bodies() == before


def test_a_manifest_that_is_not_the_one_that_the_head_knows_is_no_true_one_however_old(
    bucket: Bucket, undelete: Command
) -> None:
    key = manifest_key(RUN, 3, 1)
    before = bucket.store.get(key)
    bucket.s3.delete_object(**bucket.place(key), VersionId=bucket.s3.head_object(**bucket.place(key))["VersionId"])
    for body in (b"{}", before, b"{}"):
        bucket.store.put(key, body)
    assert f"brought back  {bucket.store.describe(key)}: overwritten" in undelete()[1]
    assert bucket.store.get(key) == before


def test_a_name_that_was_mistyped_is_said(bucket: Bucket, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--store", bucket.store.uri, "--run-id", "jbo", "undelete"]) == Exit.USER
    assert "run 'jbo' has no checkpoint in s3://" in capsys.readouterr().err


def test_where_nothing_is_kept_it_says_what_is_not_protected(
    s3_uri: str, s3_control: Control, store: ObjectStore, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, said = run(store, capsys)
    assert code == Exit.USER
    assert "keeps no old versions: what was overwritten or deleted there is gone" in said
    s3_control.set(lacks=["versions"])
    code, _, said = run(open_store(s3_uri), capsys)
    assert code == Exit.USER
    assert "knows no old versions (NotImplemented): what was overwritten or deleted there is gone" in said
