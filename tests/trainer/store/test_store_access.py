"""The store in S3: what it needs to be allowed, and credentials that change."""

from __future__ import annotations

import io
import json
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.emulator.s3 import Control
from tests.stores import MIB, bucket_and_prefix
from trainer.contract import UserError
from trainer.store import NotFoundError, StoreError, open_store
from trainer.store.checksum import Checksums


@pytest.fixture
def training_role(s3_uri: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """From here on the endpoint enforces permissions, and this process has only those of the training role."""
    iam = boto3.session.Session().client("iam")
    user = f"training-{uuid.uuid4().hex}"
    iam.create_user(UserName=user)
    allowed = ["ListBucket", "GetObject", "PutObject", "PutObjectTagging", "AbortMultipartUpload"]
    statement = {"Effect": "Allow", "Action": [f"s3:{action}" for action in allowed], "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    iam.put_user_policy(UserName=user, PolicyName="training", PolicyDocument=policy)
    key = iam.create_access_key(UserName=user)["AccessKey"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])

    def enforce_after(calls: str) -> None:
        plain = {"Content-Type": "text/plain"}
        request = urllib.request.Request(f"{s3_endpoint}/moto-api/reset-auth", calls.encode(), plain, method="POST")
        urllib.request.urlopen(request, timeout=10).close()

    enforce_after("0")
    yield
    enforce_after("inf")


def test_the_store_needs_no_permission_but_to_list_get_put_tag_and_abort(s3_uri: str, training_role: None) -> None:
    store = open_store(s3_uri)
    store.probe("runs/a/probe")
    store.replace("x", b"2", store.create("x", b"1"))
    store.put("large", io.BytesIO(bytes(17 * MIB)))
    store.read_into("large", memoryview(bytearray(17 * MIB)))
    store.put_large("large", memoryview(bytes(40 * MIB)), Checksums.of(memoryview(bytes(40 * MIB))))
    with pytest.raises(NotFoundError):
        store.info("nothing")
    store.retire("large")
    assert [info.key for info in store.list("")] == ["large", "runs/a/probe", "x"]
    bucket, prefix = bucket_and_prefix(s3_uri)
    with pytest.raises(Exception, match="AccessDenied"):  # the endpoint does enforce
        boto3.session.Session().client("s3").delete_object(Bucket=bucket, Key=f"{prefix}/x")


def test_the_probe_needs_no_other_permission(s3_uri: str, s3_control: Control, training_role: None) -> None:
    s3_control.set(lacks=["names-its-rule"])  # S3 says which rule expires an object, and this role may not read them
    for _ in range(2):
        assert open_store(s3_uri).probe("checkpoints/a/probe", for_checkpoints=True) == ()


def test_credentials_that_nobody_knows_fail_the_probe(
    s3_uri: str, training_role: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAUNKNOWN")
    with pytest.raises(UserError, match=r"InvalidAccessKeyId.*give credentials that are valid"):
        open_store(s3_uri).probe("runs/a/probe")


def write_credentials(path: Path, access_key: str, secret: str, token: str) -> None:
    lines = [f"aws_access_key_id={access_key}", f"aws_secret_access_key={secret}", f"aws_session_token={token}"]
    path.write_text("\n".join(["[default]", *lines, ""]))


@pytest.fixture
def credentials(s3_uri: str, s3_control: Control, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of credentials, the only ones there are."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    s3_control.set(keys={"ASIAFIRST": ["first", "one"], "ASIASECOND": ["second", "two"]})
    write_credentials(tmp_path / "credentials", "ASIAFIRST", "first", "one")
    return tmp_path / "credentials"


@pytest.mark.parametrize(
    ("settings", "code"),
    [({"expired": ["one"]}, "ExpiredToken"), ({"keys": {"ASIASECOND": ["second", "two"]}}, "InvalidAccessKeyId"),
     ({"keys": {"ASIAFIRST": ["first", "new"], "ASIASECOND": ["second", "two"]}}, "InvalidToken")],
)  # fmt: skip
def test_after_a_refusal_of_its_credentials_the_store_reads_them_anew(
    s3_uri: str, s3_control: Control, credentials: Path, settings: dict[str, Any], code: str
) -> None:
    store = open_store(s3_uri)
    etag = store.put("x", b"1")
    s3_control.set(**settings)
    for call in (store.get, lambda key: store.put(key, b"2"), store.info, lambda key: list(store.list(key))):
        for _ in range(2):  # the file is still the old one
            with pytest.raises(StoreError) as caught:
                call("x")
            assert caught.value.code == code
    write_credentials(credentials, "ASIASECOND", "second", "two")
    assert store.get_with_etag("x") == (b"1", etag)
    assert store.info("x").bytes == 1


def test_credentials_that_come_late_are_found(s3_uri: str, credentials: Path) -> None:
    text = credentials.read_text()
    credentials.unlink()
    store = open_store(s3_uri)
    for body in (None, "[default\nhalf a fi", text[:20]):
        if body is not None:
            credentials.write_text(body)
        with pytest.raises(StoreError) as caught:
            store.put("x", b"1")
        assert not isinstance(caught.value, UserError)
    credentials.write_text(text)
    store.put("x", b"1")
    assert store.get("x") == b"1"
