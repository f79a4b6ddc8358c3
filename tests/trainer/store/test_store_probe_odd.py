"""Endpoints that answer the probe in ways of their own: the right way is found, and what is final is told at once."""

from __future__ import annotations

import pytest

from tests.emulator.s3 import Answer, Control, FaultyProxy, Forward, refuse
from tests.stores import MIB, PROBE_KEY, probed
from trainer.contract import UserError
from trainer.store import StoreError, may_pass, open_store
from trainer.store.checksum import Checksums


@pytest.mark.parametrize("lack", ["if-none-match", "if-match-fails", "conditions-refused"])
def test_a_lack_of_conditions_is_final_and_nobody_waits_for_it(s3_uri: str, s3_control: Control, lack: str) -> None:
    s3_control.set(lacks=[lack])
    with pytest.raises(UserError, match="two machines could both own it") as caught:
        open_store(s3_uri).probe(PROBE_KEY, for_checkpoints=True)
    assert not may_pass(caught.value)


def test_a_condition_that_is_refused_by_any_code_is_a_lack(s3_uri: str, s3_proxy: FaultyProxy) -> None:
    s3_proxy.plan("PUT", lambda forward: forward(), *[refuse(400, "HeaderNotSupported")] * 2)
    with pytest.raises(UserError, match=r"it refuses every write with If-None-Match: \* \(.*HeaderNotSupported"):
        open_store(s3_uri).probe(PROBE_KEY, for_checkpoints=True)


def test_a_request_that_is_refused_for_what_is_in_it_is_refused_again(s3_uri: str, s3_proxy: FaultyProxy) -> None:
    store = open_store(s3_uri)
    for fault, passes in (((400, "InvalidRequest"), False), ((400, "BadDigest"), True), ((503, "SlowDown"), True)):
        s3_proxy.plan("PUT", *[refuse(*fault)] * 3)
        with pytest.raises(StoreError) as caught:
            store.put("x", b"1")
        s3_proxy.faults.clear()
        assert may_pass(caught.value) == passes, fault


@pytest.mark.parametrize("lack", ["md5-part", "md5-refused"])
def test_a_way_to_compare_counts_only_if_a_part_shows_it(s3_uri: str, s3_control: Control, lack: str) -> None:
    store, said = probed(s3_uri, s3_control, "crc64", lack)
    assert "compares neither CRC64NVME nor Content-MD5" in said
    body = memoryview(b"12345" * 3 * MIB)
    store.put_large("x", body, Checksums.of(body, 6 * MIB))
    assert store.get("x") == body


@pytest.mark.parametrize("code", ["SignatureDoesNotMatch", "AuthorizationHeaderMalformed"])
def test_a_signature_that_fails_by_the_checksums_works_without_them(
    s3_uri: str, s3_control: Control, code: str
) -> None:
    store, said = probed(s3_uri, s3_control, f"checksums:{code}")
    assert "AWS_REQUEST_CHECKSUM_CALCULATION=when_required" in said
    store.put("x", b"1")
    assert store.get("x") == b"1"


def test_a_signature_that_fails_in_any_case_is_told_as_at_first(
    s3_uri: str, s3_control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "mistyped")
    with pytest.raises(UserError, match=r"SignatureDoesNotMatch.*; give credentials that are valid"):
        open_store(s3_uri).probe(PROBE_KEY)


def test_what_is_not_there_may_be_answered_by_404_when_it_is_deleted(s3_uri: str, s3_control: Control) -> None:
    _, said = probed(s3_uri, s3_control, "tags", "delete-404")
    assert "the run deletes a superseded checkpoint itself" in said


def test_a_start_leaves_no_delete_marker_in_a_bucket_with_versions(
    s3_uri: str, s3_proxy: FaultyProxy, s3_control: Control
) -> None:
    def mark(forward: Forward) -> Answer:  # as S3 answers, and moto only where the object exists
        return 204, {"x-amz-delete-marker": "true", "x-amz-version-id": "v7"}, b""

    s3_proxy.plan("DELETE", lambda forward: forward(), mark, mark)  # the first one ends the trial of the checksum
    _, said = probed(s3_uri, s3_control, "tags")
    assert "the run deletes a superseded checkpoint itself" in said
    marker = [line for line in s3_proxy.requests if line.startswith("DELETE") and ".none" in line]
    assert marker[0].endswith(".none")
    assert marker[1].endswith(".none?versionId=v7")


def test_a_rule_that_expires_everything_is_no_rule_of_ours_where_none_may_be_read(
    s3_uri: str, s3_control: Control
) -> None:
    for _ in range(2):  # the second start finds an object that has the tag already
        _, said = probed(s3_uri, s3_control, "lifecycle-denied", "expires-all")
        assert "a lifecycle rule expires every checkpoint with time, the newest one, too" in said
        _, said = probed(s3_uri, s3_control, "lifecycle-denied", "names-its-rule")
        assert said == ""


def test_a_bucket_whose_lifecycle_has_no_rules_has_none_for_us(s3_uri: str, s3_proxy: FaultyProxy) -> None:
    def empty(forward: Forward) -> Answer:
        status, headers, body = forward()
        if b"LifecycleConfiguration" in body:
            body = b"<LifecycleConfiguration/>"
        return status, headers | {"Content-Length": str(len(body))}, body

    s3_proxy.plan("GET", *[empty] * 20)
    said = "\n".join(open_store(s3_uri).probe(PROBE_KEY, for_checkpoints=True))
    assert "the bucket has no lifecycle rule" in said
