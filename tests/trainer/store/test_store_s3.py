"""What only the store in S3 can get wrong: faults of the endpoint and of the way there."""

from __future__ import annotations

import io
import os
import re
import socket
import time
from collections.abc import Callable

import boto3
import pytest

from tests.emulator.s3 import FaultyProxy, cut_answer, lose_answer, refuse
from tests.stores import MIB, bucket_and_prefix, streamed
from trainer.contract import UserError
from trainer.store import ConflictError, NotFoundError, StoreError, open_store
from trainer.store.s3 import S3Store
from trainer.store.s3_client import S3Settings


def test_a_missing_bucket_is_never_a_missing_key(s3_uri: str) -> None:
    store = open_store("s3://no-such-bucket-here/prefix")
    for call in (store.get, store.info, store.retire, store.abort_uploads, lambda key: list(store.list(key))):
        with pytest.raises(StoreError) as caught:
            call("runs/a")
        assert not isinstance(caught.value, NotFoundError)
        assert caught.value.code == "NoSuchBucket"
    with pytest.raises(UserError, match=r"s3://no-such-bucket-here.*NoSuchBucket.*create the bucket"):
        store.probe("runs/a/probe")


def test_an_endpoint_that_does_not_answer_is_a_fault_and_fails_the_probe(
    s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as listener:  # bound, not listening: refuses
        listener.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
        store = S3Store(*bucket_and_prefix(s3_uri), S3Settings(attempts=1))
        for call in (store.get, store.info, store.retire, store.abort_uploads, lambda key: list(store.list(key))):
            with pytest.raises(StoreError) as caught:
                call("runs/a")
            assert caught.value.code == "EndpointConnectionError"
        with pytest.raises(UserError, match=r"127\.0\.0\.1.*check the network, and AWS_ENDPOINT_URL"):
            store.probe("runs/a/probe")


def test_an_endpoint_that_hangs_is_given_up(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # the kernel accepts, nobody answers
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
        store = S3Store(*bucket_and_prefix(s3_uri), S3Settings(attempts=1, read_timeout_seconds=0.3))
        started = time.monotonic()
        with pytest.raises(StoreError, match=r"get s3://.*/runs/a: ") as caught:
            store.get("runs/a")
        assert caught.value.code == "ReadTimeoutError"
        assert time.monotonic() - started < 3


def test_without_credentials_the_probe_says_which_to_give(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(UserError, match=r"Unable to locate credentials.*AWS_PROFILE"):
        open_store(s3_uri).probe("runs/a/probe")


@pytest.mark.parametrize(
    ("status", "code", "fix"),
    [(403, "AccessDenied", "allow the role"), (400, "ExpiredToken", "give credentials that are valid"),
     (403, "RequestTimeTooSkewed", "set the clock")],
)  # fmt: skip
def test_a_refusal_is_a_fault_of_every_operation_and_fails_the_probe(
    s3_uri: str, s3_proxy: FaultyProxy, status: int, code: str, fix: str
) -> None:
    store = open_store(s3_uri)
    for method, call in (
        ("GET", store.get),
        ("HEAD", store.info),
        ("GET", lambda key: list(store.list(key))),
        ("PUT", lambda key: store.put(key, b"")),
        ("PUT", lambda key: store.create(key, b"")),
        ("PUT", lambda key: store.replace(key, b"", "etag")),
        ("PUT", store.retire),
    ):
        s3_proxy.plan(method, *[refuse(status, code)] * 3)  # botocore asks again if another region might help
        with pytest.raises(StoreError, match=re.escape(store.describe("runs/a"))) as caught:
            call("runs/a")
        assert not isinstance(caught.value, NotFoundError | ConflictError)
        assert caught.value.code in (code, str(status))
        s3_proxy.faults.clear()
    s3_proxy.plan("PUT", refuse(status, code))
    with pytest.raises(UserError, match=fix):
        store.probe("runs/a/probe")


def test_a_passing_fault_of_the_server_is_tried_again_and_a_lasting_one_reported(
    s3_uri: str, s3_proxy: FaultyProxy
) -> None:
    store = open_store(s3_uri)
    s3_proxy.plan("PUT", refuse(503, "SlowDown"))
    store.put("x", b"1")
    s3_proxy.plan("GET", refuse(500, "InternalError"))
    assert store.get("x") == b"1"
    store = S3Store(*bucket_and_prefix(s3_uri), S3Settings(attempts=1))
    s3_proxy.plan("GET", refuse(503, "SlowDown"))
    with pytest.raises(StoreError) as caught:
        store.get("x")
    assert caught.value.code == "SlowDown"
    s3_proxy.plan("PUT", refuse(503, "SlowDown"))
    with pytest.raises(StoreError):  # not the user's to change
        store.probe("x")


def test_a_lost_acknowledgement_does_not_turn_a_winner_into_a_loser(s3_uri: str, s3_proxy: FaultyProxy) -> None:
    store = open_store(s3_uri)
    s3_proxy.plan("PUT", lose_answer)
    etag = store.create("attempts/1.json", b"mine")
    assert store.get_with_etag("attempts/1.json") == (b"mine", etag)
    s3_proxy.plan("PUT", lose_answer)
    newer = store.replace("attempts/1.json", b"mine too", etag)
    assert store.get_with_etag("attempts/1.json") == (b"mine too", newer)
    assert len([line for line in s3_proxy.requests if line.startswith("PUT")]) == 4


def test_a_lost_request_does_not_turn_a_loser_into_a_winner(s3_uri: str, s3_proxy: FaultyProxy) -> None:
    store = open_store(s3_uri)
    store.put("attempts/1.json", b"theirs")
    etag = store.info("attempts/1.json").etag
    s3_proxy.plan("PUT", lambda forward: None)
    with pytest.raises(ConflictError):
        store.create("attempts/1.json", b"mine")
    store.put("attempts/1.json", b"theirs again")
    s3_proxy.plan("PUT", lambda forward: None)
    with pytest.raises(ConflictError):
        store.replace("attempts/1.json", b"mine", etag)
    assert store.get("attempts/1.json") == b"theirs again"


def test_a_conditional_write_that_meets_another_one_under_way_is_tried_again(
    s3_uri: str, s3_proxy: FaultyProxy
) -> None:
    store = open_store(s3_uri)
    s3_proxy.plan("PUT", refuse(409, "ConditionalRequestConflict"))
    store.create("x", b"1")
    assert store.get("x") == b"1"
    s3_proxy.plan("PUT", *[refuse(409, "ConditionalRequestConflict")] * 3)
    with pytest.raises(StoreError) as caught:
        store.create("y", b"1")
    assert not isinstance(caught.value, ConflictError)


def test_a_body_cut_off_is_read_on_from_there(s3_uri: str, s3_proxy: FaultyProxy) -> None:
    store, body = open_store(s3_uri), os.urandom(4 * MIB)
    store.put("x", body)
    s3_proxy.plan("GET", cut_answer, cut_answer)
    buffer = bytearray(len(body))
    store.read_into("x", memoryview(buffer))
    assert buffer == body
    s3_proxy.plan("GET", cut_answer)
    assert store.get("x") == body
    s3_proxy.plan("GET", cut_answer)
    assert store.read_range("x", 1000, 2 * MIB) == body[1000 : 1000 + 2 * MIB]
    s3_proxy.plan("GET", cut_answer, cut_answer)
    assert streamed(store, "x", 1000, 3 * MIB, buffer=70_000) == body[1000 : 1000 + 3 * MIB]
    s3_proxy.plan("GET", *[cut_answer] * 3)
    with pytest.raises(StoreError, match="cut off 3 times"):
        store.get("x")


def test_an_object_changed_between_two_halves_is_not_mixed(s3_uri: str, s3_proxy: FaultyProxy) -> None:
    store = open_store(s3_uri)
    store.put("x", b"a" * MIB)

    def cut_and_change(forward: Callable[[], tuple[int, dict[str, str], bytes]]) -> tuple[int, dict[str, str], bytes]:
        answer = cut_answer(forward)
        store.put("x", b"b" * MIB)
        return answer

    for read in (store.get, lambda key: streamed(store, key, 0, MIB)):
        s3_proxy.plan("GET", cut_and_change)
        with pytest.raises(StoreError) as caught:
            read("x")
        assert caught.value.code == "PreconditionFailed"
        assert not isinstance(caught.value, ConflictError)
        store.put("x", b"a" * MIB)


def test_an_answer_that_goes_on_elsewhere_than_asked_is_not_mixed_in(s3_uri: str, s3_proxy: FaultyProxy) -> None:
    store = open_store(s3_uri)
    store.put("x", os.urandom(MIB))
    whole: list[tuple[int, dict[str, str], bytes]] = []

    def cut_and_keep(forward: Callable[[], tuple[int, dict[str, str], bytes]]) -> tuple[int, dict[str, str], bytes]:
        whole.append(forward())
        return cut_answer(lambda: whole[0])

    s3_proxy.plan("GET", cut_and_keep, lambda forward: whole[0])
    with pytest.raises(StoreError, match=f"{MIB} bytes follow byte {MIB // 2} there"):
        store.get("x")


def test_damage_on_the_way_is_noticed(s3_uri: str, s3_proxy: FaultyProxy) -> None:
    store = open_store(s3_uri)
    store.put("x", b"a" * 1000)

    def damage(forward: Callable[[], tuple[int, dict[str, str], bytes]]) -> tuple[int, dict[str, str], bytes]:
        status, headers, body = forward()
        return status, headers, b"b" + body[1:]

    s3_proxy.plan("GET", damage)
    with pytest.raises(StoreError) as caught:
        store.get("x")
    assert caught.value.code == "FlexibleChecksumError"


def test_a_large_put_that_fails_leaves_the_old_object_and_no_parts(s3_uri: str, s3_proxy: FaultyProxy) -> None:
    store = open_store(s3_uri)
    store.put("x", b"old")
    s3_proxy.plan("PUT", *[refuse(403, "AccessDenied")] * 3)
    with pytest.raises(StoreError, match=re.escape(store.describe("x"))):
        store.put("x", io.BytesIO(bytes(40 * MIB)))
    assert store.get("x") == b"old"
    uploads = boto3.session.Session().client("s3").list_multipart_uploads(Bucket=bucket_and_prefix(s3_uri)[0])
    assert uploads.get("Uploads", []) == []


def test_a_list_goes_through_all_pages(s3_uri: str, s3_proxy: FaultyProxy) -> None:
    store = S3Store(*bucket_and_prefix(s3_uri), S3Settings(page_keys=10))
    keys = [f"metrics/{number:03}" for number in range(35)]
    for key in keys:
        store.put(key, b"")
    s3_proxy.requests.clear()
    assert [info.key for info in store.list("metrics/")] == keys
    assert len(s3_proxy.requests) == 4


def test_the_folder_markers_of_the_aws_console_are_no_objects(s3_uri: str) -> None:
    bucket, prefix = bucket_and_prefix(s3_uri)
    for marker in (f"{prefix}/", f"{prefix}/runs/"):
        boto3.session.Session().client("s3").put_object(Bucket=bucket, Key=marker)
    store = open_store(s3_uri)
    store.put("runs/a", b"")
    assert [info.key for info in store.list("")] == ["runs/a"]


def test_a_retired_object_bears_the_tag_that_the_lifecycle_looks_for(s3_uri: str) -> None:
    store = open_store(s3_uri)
    store.put("checkpoints/a/1", b"old")
    store.retire("checkpoints/a/1")
    bucket, prefix = bucket_and_prefix(s3_uri)
    tags = boto3.session.Session().client("s3").get_object_tagging(Bucket=bucket, Key=f"{prefix}/checkpoints/a/1")
    assert tags["TagSet"] == [{"Key": "superseded", "Value": "true"}]
