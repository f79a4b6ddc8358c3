"""What an S3 endpoint lacks is found at the start, and either refused or told with what it costs."""

from __future__ import annotations

from typing import Any

import boto3
import pytest

from tests.emulator.s3 import Answer, Control, FaultyProxy, Forward, refuse
from tests.stores import MIB, bucket_and_prefix, probed
from tests.stores import PROBE_KEY as KEY
from trainer.contract import UserError
from trainer.store import ConflictError, ObjectStore, StoreError, open_store
from trainer.store.checksum import Checksums


def test_a_store_that_lacks_nothing_has_nothing_to_tell(store: ObjectStore) -> None:
    assert store.probe("runs/a/probe") == ()
    assert store.probe(KEY, for_checkpoints=True) == ()
    assert store.abort_uploads("") == 0
    assert not store.keeps_all


def test_the_probe_is_cheap_and_lets_its_object_expire(s3_uri: str, s3_proxy: FaultyProxy, s3_control: Control) -> None:
    store = open_store(s3_uri)
    store.probe(KEY, for_checkpoints=True)
    assert len(s3_proxy.requests) <= 17
    assert s3_control.tags()[f"{s3_uri.removeprefix('s3://')}/{KEY}"] == {"superseded": "true"}


def test_an_endpoint_that_does_not_obey_conditions_is_refused_with_the_reason_and_the_fix(
    s3_uri: str, s3_control: Control
) -> None:
    store = open_store(s3_uri)
    for lack, said in {
        "if-none-match": "it ignores If-None-Match: *, and wrote over an object",
        "if-match": "it ignores If-Match, and wrote over an object",
        "if-match-fails": "it refuses If-Match even with the etag that it gave",
        "conditions-refused": "it refuses every write with If-None-Match: *",
    }.items():
        s3_control.set(lacks=[lack])
        with pytest.raises(UserError) as caught:
            store.probe(KEY, for_checkpoints=True)
        for words in (s3_uri, said, "two machines could both own it", "use a folder, or an S3 endpoint that obeys"):
            assert words in str(caught.value)


def test_an_endpoint_that_wants_etags_without_quotes_gets_them(s3_uri: str, s3_control: Control) -> None:
    store, said = probed(s3_uri, s3_control, "bare-etags")
    assert said == ""
    etag = store.put("x", b"1")
    store.replace("x", b"2", etag)
    with pytest.raises(ConflictError):
        store.replace("x", b"3", etag)
    assert store.get("x") == b"2"


def test_data_needs_no_conditions(s3_uri: str, s3_control: Control) -> None:
    store = open_store(s3_uri)
    s3_control.set(lacks=["if-none-match", "tags", "lifecycle", "crc64"])
    assert store.probe("datasets/probe") == ()


def test_two_starts_may_probe_at_the_same_time(s3_uri: str, s3_proxy: FaultyProxy) -> None:
    first, second = open_store(s3_uri), open_store(s3_uri)

    def probe_again(forward: Forward) -> Answer:
        assert second.probe(KEY, for_checkpoints=True) == ()
        return forward()

    for number in range(5):  # between the first writes, which have conditions
        s3_proxy.plan("PUT", *[lambda forward: forward()] * number, probe_again)
        assert first.probe(KEY, for_checkpoints=True) == ()
        s3_proxy.faults.clear()


# Checksums


@pytest.mark.parametrize("lack", ["crc64", "crc64-refused"])
def test_without_crc64nvme_each_part_is_compared_by_md5(
    s3_uri: str, s3_proxy: FaultyProxy, s3_control: Control, lack: str
) -> None:
    store, said = probed(s3_uri, s3_control, lack)
    assert "it compares the MD5 of each part" in said
    for size in (100, 13 * MIB):
        body = memoryview(b"12345" * (size // 5 + 1))[:size]
        store.put_large("x", body, Checksums.of(body, 6 * MIB))
        assert store.get("x") == body
    sent = [h for r, h in zip(s3_proxy.requests, s3_proxy.headers, strict=True) if r.startswith("PUT") and "/x" in r]
    assert all("content-md5" in headers for headers in sent)


def test_without_any_comparison_checkpoints_are_stored_and_that_is_told(s3_uri: str, s3_control: Control) -> None:
    store, said = probed(s3_uri, s3_control, "crc64", "md5")
    assert "compares neither CRC64NVME nor Content-MD5" in said
    body = memoryview(b"12345" * MIB)
    store.put_large("x", body, Checksums.of(body, 5 * MIB))
    assert store.get("x") == body


def test_checksums_that_boto3_adds_are_left_out_where_they_are_refused(s3_uri: str, s3_control: Control) -> None:
    store, said = probed(s3_uri, s3_control, "checksums")
    assert "AWS_REQUEST_CHECKSUM_CALCULATION=when_required" in said
    assert "it compares the MD5 of each part" in said
    store.replace("x", b"2", store.create("x", b"1"))
    with pytest.raises(ConflictError):
        store.create("x", b"3")
    body = memoryview(b"12345" * 3 * MIB)
    store.put_large("y", body, Checksums.of(body, 6 * MIB))
    assert store.get("y") == body


def test_a_fault_of_the_moment_is_taken_for_no_lack(s3_uri: str, s3_control: Control) -> None:
    store = open_store(s3_uri)
    s3_control.set(lacks=["busy"])
    with pytest.raises(StoreError) as caught:
        store.probe(KEY, for_checkpoints=True)
    assert caught.value.code == "SlowDown"
    s3_control.set(lacks=[])
    assert store.probe(KEY, for_checkpoints=True) == ()


# What becomes of superseded checkpoints


def test_what_nothing_would_expire_is_deleted_as_in_a_folder(s3_uri: str, s3_control: Control) -> None:
    for lack, said in {
        "tags": "the endpoint knows no tags (NotImplemented): the run deletes",
        "tags-denied": "objects may not be tagged: the run deletes",
        "lifecycle": "no lifecycle rule that expires what is tagged superseded=true: the run deletes",
    }.items():
        store, told = probed(s3_uri, s3_control, lack)
        assert said in told
        for key in ("checkpoints/a/1", "checkpoints/a/2"):
            store.put(key, b"1")
        store.retire("checkpoints/a/1")
        store.retire("checkpoints/a/1")
        assert [info.key for info in store.list("checkpoints/a/")] == ["checkpoints/a/2", KEY]
        assert not store.keeps_all


def test_what_nobody_may_delete_stays_and_that_is_told_with_the_fix(s3_uri: str, s3_control: Control) -> None:
    store, said = probed(s3_uri, s3_control, "tags-denied", "delete-denied")
    assert "objects may not be tagged, and objects may not be deleted: every checkpoint stays" in said
    assert "Allow s3:DeleteObject, or allow s3:PutObjectTagging" in said
    store.put("x", b"1")
    store.retire("x")
    assert store.get("x") == b"1"
    assert store.keeps_all


def test_a_lifecycle_that_may_not_be_read_is_told_unless_an_answer_names_its_rule(
    s3_uri: str, s3_control: Control
) -> None:
    _, said = probed(s3_uri, s3_control, "lifecycle-denied")
    assert "could not be seen" in said
    _, said = probed(s3_uri, s3_control, "lifecycle-denied", "names-its-rule")
    assert said == ""


def test_only_a_rule_that_expires_what_is_tagged_counts(s3_uri: str) -> None:
    client, store = boto3.session.Session().client("s3"), open_store(s3_uri)
    everything = "the lifecycle rule 'mine' expires every checkpoint with time, the newest one, too"
    rules: list[tuple[Any, str]] = [
        ({"Filter": {"Prefix": ""}}, everything),
        ({"Prefix": "some/prefix/"}, everything),
        ({"Filter": {"Tag": {"Key": "superseded", "Value": "true"}}}, ""),
        ({"Filter": {"Prefix": "checkpoints/"}}, "no lifecycle rule"),
        ({"Filter": {"Tag": {"Key": "old", "Value": "true"}}}, "no lifecycle rule"),
        ({"Filter": {"Prefix": ""}, "Status": "Disabled"}, "no lifecycle rule"),
    ]
    for rule, said in rules:
        whole = {"ID": "mine", "Status": "Enabled", "Expiration": {"Days": 1}} | rule
        client.put_bucket_lifecycle_configuration(
            Bucket=bucket_and_prefix(s3_uri)[0],
            LifecycleConfiguration={"Rules": [whole]},
        )
        told = "".join(store.probe(KEY, for_checkpoints=True))
        assert said in told
        assert bool(said) == bool(told)


def test_a_bucket_with_versions_or_object_lock_is_told_to_keep_what_is_superseded_unless_a_rule_ends_it(
    s3_uri: str, s3_control: Control
) -> None:
    bucket, _ = bucket_and_prefix(s3_uri)
    client = boto3.session.Session().client("s3")
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    assert "the bucket keeps old versions" in "\n".join(open_store(s3_uri).probe(KEY, for_checkpoints=True))
    rule = client.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"][0]
    rule["NoncurrentVersionExpiration"] = {"NoncurrentDays": 2}
    client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": [rule]})
    assert open_store(s3_uri).probe(KEY, for_checkpoints=True) == ()
    s3_control.set(lacks=["lifecycle-denied", "names-its-rule"])  # as a machine on AWS sees it
    assert open_store(s3_uri).probe(KEY, for_checkpoints=True) == ()
    s3_control.reset()
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Suspended"})
    assert open_store(s3_uri).probe(KEY, for_checkpoints=True) == ()


# Forms of buckets


def test_a_bucket_in_another_region_is_found_there(s3_uri: str, s3_proxy: FaultyProxy, s3_control: Control) -> None:
    store, said = probed(s3_uri, s3_control, "region:eu-central-1")
    assert said == ""
    body = memoryview(bytes(13 * MIB))
    store.put_large("x", body, Checksums.of(body, 6 * MIB))
    assert store.get("x") == body
    sent_on = [h for h in s3_proxy.headers if "/us-east-1/" in h["authorization"]]
    assert len(sent_on) == 1  # only the first request


def test_a_key_of_kms_that_may_not_be_used_is_told_as_that(s3_uri: str, s3_control: Control) -> None:
    with pytest.raises(UserError, match=r"kms:GenerateDataKey on resource.*; allow the role or user kms:Generate"):
        probed(s3_uri, s3_control, "kms")


def test_a_bucket_whose_requester_pays_is_told_as_that(s3_uri: str, s3_proxy: FaultyProxy) -> None:
    s3_proxy.plan("PUT", *[refuse(403, "AccessDenied")] * 3)  # all that S3 says
    with pytest.raises(UserError, match="one of another account where the requester pays cannot be used"):
        open_store(s3_uri).probe(KEY)


def test_names_with_dots_and_prefixes_with_spaces_and_any_letters_are_right(
    s3_uri: str, s3_endpoint: str, s3_proxy: FaultyProxy
) -> None:
    boto3.session.Session().client("s3").create_bucket(Bucket="name.with.dots")
    store = open_store("s3://name.with.dots/my runs/größe+%41=✓")
    assert len(store.probe(KEY, for_checkpoints=True)) == 1  # of the lifecycle
    store.put("a b/ü", b"1")
    assert [info.key for info in store.list("a b/")] == ["a b/ü"]
    assert store.get("a b/ü") == b"1"
    store.retire("a b/ü")
    assert list(store.list("a b/")) == []
    assert all(line.split()[1].startswith("/name.with.dots") for line in s3_proxy.requests)  # in the path, no host
