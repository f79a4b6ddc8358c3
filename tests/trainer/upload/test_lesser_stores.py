"""Checkpoints on an S3 endpoint that does less than S3: stored and restored all the same, or refused at the start."""

from __future__ import annotations

import pytest

from tests.checkpoints import RUN, read_lease
from tests.emulator.s3 import Control
from tests.uploads import Connect, Start, answer, send_checkpoint, wait_until
from trainer.contract import checkpoint_key
from trainer.store import open_store


def test_without_crc64nvme_and_tags_checkpoints_are_stored_and_superseded_ones_deleted(
    s3_uri: str, s3_control: Control, start: Start, connect: Connect, capfd: pytest.CaptureFixture[str]
) -> None:
    s3_control.set(lacks=["crc64-refused", "tags", "lifecycle"])
    channel = connect(start(s3_uri))
    for step in range(1, 5):
        send_checkpoint(channel, step, b"tensors of step %d" % step)
        assert "committed" in answer(channel)
    store = open_store(s3_uri)

    def is_tidy() -> bool:
        return len(list(store.list(checkpoint_key(RUN, "data/")))) == 2

    wait_until(is_tidy)
    lease = read_lease(store)
    assert [info.key for info in store.list(checkpoint_key(RUN, "manifest/"))] == [lease.previous, lease.newest]
    assert (
        store.get(lease.newest.replace("/manifest/", "/data/").replace(".json", ".safetensors")) == b"tensors of step 4"
    )
    said = capfd.readouterr().err
    assert "it compares the MD5 of each part" in said
    assert "the run deletes a superseded checkpoint itself" in said


def test_where_nothing_can_be_given_up_each_save_is_told_with_its_size(
    s3_uri: str, s3_control: Control, start: Start, connect: Connect, capfd: pytest.CaptureFixture[str]
) -> None:
    s3_control.set(lacks=["tags", "delete-denied"])
    channel = connect(start(s3_uri))
    for step in range(1, 5):
        send_checkpoint(channel, step, bytes(200_000))
        assert "committed" in answer(channel)
    assert capfd.readouterr().err.count("0.2 MB of superseded checkpoints stay in the store with each save") == 1


def test_an_endpoint_that_ignores_conditions_gets_no_second_owner(
    s3_uri: str, s3_control: Control, start: Start, capfd: pytest.CaptureFixture[str]
) -> None:
    s3_control.set(lacks=["if-none-match", "if-match"])
    assert start(s3_uri).state == "failed"
    assert "error: the store" in (said := capfd.readouterr().err)
    assert "two machines could both own it and train it to the end" in said
    assert [info.key for info in open_store(s3_uri).list("runs/")] == [f"runs/{RUN}/probe"]
