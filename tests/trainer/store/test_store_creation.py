"""What is written under a new name: by whom it may be there already, and what is done where it differs."""

from __future__ import annotations

import pytest

from tests.emulator.s3 import Control, FaultyProxy, refuse
from trainer.contract import UserError
from trainer.store import ObjectStore, StoreError, open_store
from trainer.store.creation import write_new

KEY = "datasets/a/1/train-32px-00000.arrow"


def test_what_another_call_has_made_is_kept_and_what_is_damaged_is_written_over(store: ObjectStore) -> None:
    write_new(store, KEY, b"shard")
    etag = store.info(KEY).etag
    write_new(store, KEY, b"shard")
    assert store.info(KEY).etag == etag
    store.put(KEY, b"shorn")
    write_new(store, KEY, b"shard")
    assert store.get(KEY) == b"shard"


def test_where_nothing_may_be_overwritten_other_bytes_are_an_error_that_says_what_to_do(
    s3_uri: str, s3_proxy: FaultyProxy
) -> None:
    store = open_store(s3_uri)
    store.put(KEY, b"somebody else's")
    refused = refuse(412, "PreconditionFailed"), refuse(403, "AccessDenied")
    s3_proxy.plan("PUT", *refused)
    with pytest.raises(UserError, match=rf"{KEY} holds other bytes .* delete it, and run the same command again"):
        write_new(store, KEY, b"shard")
    assert store.get(KEY) == b"somebody else's"
    s3_proxy.plan("PUT", refuse(403, "AccessDenied"))
    with pytest.raises(StoreError, match="AccessDenied"):  # it may not even create
        write_new(store, "datasets/b", b"shard")


def test_a_refusal_that_may_pass_or_hides_nothing_is_no_sign_of_somebody_elses_bytes(
    s3_uri: str, s3_proxy: FaultyProxy
) -> None:
    store = open_store(s3_uri)
    for code in ("BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch"):
        before = len(s3_proxy.requests)
        s3_proxy.plan("PUT", refuse(400, code))
        with pytest.raises(StoreError, match=code):
            write_new(store, KEY, b"shard")
        assert len(s3_proxy.requests) == before + 1, "nothing is written without the condition"
    s3_proxy.plan("PUT", refuse(501, "NotImplemented"), refuse(403, "AccessDenied"))
    with pytest.raises(StoreError, match="AccessDenied"):
        write_new(store, KEY, b"shard")


def test_an_acknowledgement_of_a_large_body_that_got_lost_is_no_conflict(s3_uri: str, s3_proxy: FaultyProxy) -> None:
    store, body = open_store(s3_uri), bytes(17 << 20)

    def lose_the_end(forward: object) -> None:
        forward()  # type: ignore[operator]

    s3_proxy.plan("POST", lambda forward: forward(), lose_the_end)  # the first begins the upload
    etag = store.create(KEY, body)
    assert store.get_with_etag(KEY) == (body, etag)


@pytest.mark.parametrize("lack", ["conditions-refused", "if-none-match"])
def test_an_endpoint_that_knows_no_conditions_takes_datasets_all_the_same(
    lack: str, s3_uri: str, s3_control: Control
) -> None:
    store = open_store(s3_uri)
    s3_control.set(lacks=[lack])
    assert store.probe("datasets/probe", creates=True) == ()
    for body in (b"shard", bytes(17 << 20)):
        write_new(store, KEY, body)
        assert store.get(KEY) == body
