"""The S3 of the tests refuses what S3 refuses: only then do the other tests prove that nothing of it is sent."""

from __future__ import annotations

import functools
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.emulator.s3 import Control
from tests.stores import MIB, bucket_and_prefix
from trainer.store.checksum import base64_of, crc64

WRONG = base64_of("0123456789abcdef")


@pytest.fixture
def bucket(s3_uri: str) -> str:
    return bucket_and_prefix(s3_uri)[0]


@functools.cache
def client(**arguments: Any) -> Any:
    return new_client(**arguments)


def new_client(**arguments: Any) -> Any:
    return boto3.session.Session().client("s3", config=Config(retries={"total_max_attempts": 1}), **arguments)


def refusal(call: Callable[[], object]) -> tuple[str, int]:
    with pytest.raises(ClientError) as caught:
        call()
    return caught.value.response["Error"]["Code"], caught.value.response["ResponseMetadata"]["HTTPStatusCode"]


def test_a_wrong_checksum_of_a_small_object_is_refused(bucket: str) -> None:
    wrongs: tuple[dict[str, str], ...] = (
        {"ChecksumCRC64NVME": WRONG}, {"ChecksumCRC32": "AAAAAA=="}, {"ChecksumCRC32C": "AAAAAA=="},
        {"ChecksumSHA256": base64_of("00" * 32)}, {"ContentMD5": base64_of("00" * 16)},
    )  # fmt: skip
    for wrong in wrongs:
        put = partial(client().put_object, Bucket=bucket, Key="x", Body=b"1", **wrong)
        assert refusal(put) == ("BadDigest", 400)
    right = base64_of(crc64(memoryview(b"1")))
    client().put_object(Bucket=bucket, Key="x", Body=b"1", ChecksumAlgorithm="CRC64NVME", ChecksumCRC64NVME=right)
    assert client().head_object(Bucket=bucket, Key="x", ChecksumMode="ENABLED")["ChecksumCRC64NVME"] == right


def test_wrong_checksums_of_a_multipart_upload_are_refused(bucket: str) -> None:
    place: dict[str, Any] = {"Bucket": bucket, "Key": "x"}
    bodies = [b"a" * 5 * MIB, b"b"]
    first, second = (base64_of(crc64(memoryview(body))) for body in bodies)
    upload = client().create_multipart_upload(**place, ChecksumAlgorithm="CRC64NVME", ChecksumType="FULL_OBJECT")
    place["UploadId"] = upload["UploadId"]
    send = client().upload_part
    assert refusal(lambda: send(**place, PartNumber=1, Body=bodies[0], ChecksumCRC64NVME=second)) == ("BadDigest", 400)
    assert refusal(lambda: send(**place, PartNumber=1, Body=bodies[0])) == ("InvalidRequest", 400)  # botocore's CRC32
    etags = [
        send(**place, PartNumber=number, Body=body, ChecksumCRC64NVME=checksum)["ETag"]
        for number, body, checksum in zip((1, 2), bodies, (first, second), strict=True)
    ]

    def end(first: str, second: str, whole: str, size: int = 5 * MIB + 1) -> Any:
        parts = [
            {"PartNumber": number, "ETag": etag, "ChecksumCRC64NVME": checksum}
            for number, etag, checksum in zip((1, 2), etags, (first, second), strict=True)
        ]
        return client().complete_multipart_upload(
            **place, MultipartUpload={"Parts": parts}, ChecksumCRC64NVME=whole, ChecksumType="FULL_OBJECT",
            MpuObjectSize=size,
        )  # fmt: skip

    whole = base64_of(crc64(memoryview(b"".join(bodies))))
    assert refusal(lambda: end(second, second, whole)) == ("InvalidPart", 400)
    assert refusal(lambda: end(first, second, WRONG)) == ("BadDigest", 400)
    assert refusal(lambda: end(first, second, whole, 5 * MIB)) == ("InvalidRequest", 400)
    end(first, second, whole)
    assert client().get_object(Bucket=bucket, Key="x")["Body"].read() == b"".join(bodies)


def test_a_body_that_is_not_the_signed_one_is_refused(bucket: str) -> None:
    one = new_client()
    one.meta.events.register("before-send.s3.PutObject", lambda request, **_: setattr(request, "body", b"2"))
    assert refusal(lambda: one.put_object(Bucket=bucket, Key="x", Body=b"1"))[0] in (
        "XAmzContentSHA256Mismatch", "BadDigest",
    )  # fmt: skip


def test_a_sender_that_is_unknown_or_signs_wrongly_is_refused(bucket: str, s3_endpoint: str) -> None:
    unknown = {"aws_access_key_id": "AKIAUNKNOWN", "aws_secret_access_key": "testing"}
    wrong = {"aws_access_key_id": "testing", "aws_secret_access_key": "wrong"}
    assert refusal(lambda: client(**unknown).list_objects_v2(Bucket=bucket)) == ("InvalidAccessKeyId", 403)
    assert refusal(lambda: client(**wrong).list_objects_v2(Bucket=bucket)) == ("SignatureDoesNotMatch", 403)
    assert refusal(lambda: client(**wrong).head_object(Bucket=bucket, Key="x")) == ("403", 403)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{s3_endpoint}/{bucket}?list-type=2", timeout=30)
    assert caught.value.code == 403
    caught.value.close()


def test_a_signature_is_good_for_every_name_of_a_key_and_every_query(bucket: str) -> None:
    for key in ("plain", "a b+c", "ä/ö", "x=y&z?", "~tilde'(1)", "%41"):
        client().put_object(Bucket=bucket, Key=key, Body=b"1", Metadata={"note": "two  blanks"})
        assert [one["Key"] for one in client().list_objects_v2(Bucket=bucket, Prefix=key)["Contents"]] == [key]
        client().delete_object(Bucket=bucket, Key=key)


def test_a_session_is_refused_once_it_has_expired(bucket: str, s3_control: Control) -> None:
    s3_control.set(keys={"ASIA": ["secret", "token"]})
    session = {"aws_access_key_id": "ASIA", "aws_secret_access_key": "secret", "aws_session_token": "token"}
    client(**session).list_objects_v2(Bucket=bucket)
    s3_control.set(expired=["token"])
    assert refusal(lambda: client(**session).list_objects_v2(Bucket=bucket)) == ("ExpiredToken", 400)
    s3_control.reset()
    assert refusal(lambda: client(**session).list_objects_v2(Bucket=bucket)) == ("InvalidAccessKeyId", 403)
    session["aws_access_key_id"] = "testing"
    session["aws_secret_access_key"] = "testing"
    assert refusal(lambda: client(**session).list_objects_v2(Bucket=bucket)) == ("InvalidToken", 400)


def test_a_clock_that_is_a_quarter_of_an_hour_off_is_refused(bucket: str, s3_control: Control) -> None:
    for minutes, code in ((14, ""), (-14, ""), (16, "RequestTimeTooSkewed"), (-16, "RequestTimeTooSkewed")):
        s3_control.set(clock_offset=60 * minutes)
        if code:
            assert refusal(lambda: client().list_objects_v2(Bucket=bucket)) == (code, 403)
        else:
            client().list_objects_v2(Bucket=bucket)


def test_the_control_tells_requests_open_uploads_and_tags(bucket: str, s3_control: Control) -> None:
    before = s3_control.requests()
    upload = client().create_multipart_upload(Bucket=bucket, Key="large")["UploadId"]
    assert f"{bucket}/large" in s3_control.uploads()
    client().abort_multipart_upload(Bucket=bucket, Key="large", UploadId=upload)
    assert f"{bucket}/large" not in s3_control.uploads()
    client().put_object(Bucket=bucket, Key="x", Body=b"1")
    assert f"{bucket}/x" not in s3_control.tags()
    client().put_object_tagging(Bucket=bucket, Key="x", Tagging={"TagSet": [{"Key": "superseded", "Value": "true"}]})
    assert s3_control.tags()[f"{bucket}/x"] == {"superseded": "true"}
    assert s3_control.requests() == before + 4
