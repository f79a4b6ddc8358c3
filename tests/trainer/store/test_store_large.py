"""Large objects: written without a copy, with checksums that are compared where they arrive; and what is left of a
write that was killed."""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import signal
import ssl
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import boto3
import pytest

from tests import PATIENCE
from tests.emulator.s3 import Control, FaultyProxy, lose_answer, refuse
from tests.stores import MIB, bucket_and_prefix
from trainer.store import ObjectStore, StoreError, open_store
from trainer.store.checksum import PART_BYTES, Checksums, base64_of, crc64

PARTS = 6 * MIB  # S3's parts have 5 MiB or more


def body_of(size: int) -> memoryview:
    return memoryview((os.urandom(MIB) * (size // MIB + 1))[:size])


def put(store: ObjectStore, key: str, body: memoryview) -> Checksums:
    """In parts of 6 MiB."""
    checksums = Checksums.of(body, PARTS)
    store.put_large(key, body, checksums)
    return checksums


def test_a_checksum_is_the_one_of_the_standard() -> None:
    assert crc64(memoryview(b"123456789")) == "ae8b14860a799888"  # the check value of CRC-64/NVME
    assert base64_of("ae8b14860a799888") == "rosUhgp5mIg="


def test_the_checksum_of_the_whole_follows_from_those_of_the_parts() -> None:
    body = body_of(3 * MIB + 1)
    found = Checksums.of(body, MIB)
    assert found.parts == tuple(crc64(body[start : start + MIB]) for start in range(0, len(body), MIB))
    assert (found.whole, found.bytes, found.part_bytes) == (crc64(body), len(body), MIB)
    assert Checksums.of(body).parts == (found.whole,)
    assert Checksums.of(body).part_bytes == PART_BYTES
    assert Checksums.of(memoryview(b"")) == Checksums(0, PART_BYTES, (), "0" * 16, hashlib.sha256().hexdigest())
    assert Checksums.from_json(found.to_json() | {"key": "somewhere"}) == found


@pytest.mark.parametrize("size", [0, 1, PARTS, PARTS + 1, 4 * PARTS])
def test_a_large_object_is_read_back_whole_and_in_part(store: ObjectStore, size: int) -> None:
    body = body_of(size)
    store.put("x", b"old")
    put(store, "x", body)
    assert store.get("x") == body
    if size > 4:
        buffer = bytearray(3)
        for start in (0, 1, size - 3):
            store.read_into("x", memoryview(buffer), start)
            assert buffer == body[start : start + 3]


def test_a_range_that_the_object_does_not_have_is_a_fault(store: ObjectStore) -> None:
    store.put("x", b"12345")
    for start in (3, 5, 9):
        with pytest.raises(StoreError) as caught:
            store.read_into("x", memoryview(bytearray(3)), start)
        assert caught.value.code == "InvalidRange"
    for start, size in ((-1, 3), (0, 0)):
        with pytest.raises(ValueError, match="not a range"):
            store.read_into("x", memoryview(bytearray(size)), start)


@pytest.mark.parametrize("size", [100, 3 * PARTS])
def test_a_body_that_is_not_what_its_checksums_say_is_refused(store: ObjectStore, size: int) -> None:
    store.put("x", b"old")
    damaged = bytearray(body_of(size))
    checksums = Checksums.of(memoryview(damaged), PARTS)
    damaged[-1] ^= 1
    with pytest.raises(StoreError, match=re.escape(store.describe("x"))) as caught:
        store.put_large("x", memoryview(damaged), checksums)
    assert caught.value.code == "BadDigest"
    with pytest.raises(ValueError, match=f"has 5 bytes, its checksums are of {size}"):
        store.put_large("x", memoryview(b"12345"), checksums)
    assert store.get("x") == b"old"
    assert store.abort_uploads("") == 0


def test_nothing_is_copied_and_nothing_is_held_afterwards(store: ObjectStore) -> None:
    size = 5 * PARTS
    memory = mmap.mmap(-1, size)
    view = memoryview(memory)
    put(store, "warm", view[:10])
    tracemalloc.start()
    put(store, "x", view)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * MIB, f"{peak} bytes for a body of {size}"
    view.release()
    memory.close()  # BufferError if there still were a view


KILLED = """
import os, signal, sys
from trainer.store import open_store
from trainer.store.checksum import Checksums
body = memoryview(bytes(20 << 20))
os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)  # the directory's; S3's is killed by its endpoint
open_store(sys.argv[1]).put_large(sys.argv[2], body, Checksums.of(body, 6 << 20))
"""


def test_what_a_killed_writer_leaves_in_a_folder_is_removed(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put("runs/b/kept", b"1")
    for key in ("runs/a/data/1", "runs/b/data/1"):
        done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), key], timeout=PATIENCE)
        assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.rglob(".store-*"))) == 3  # the lock, too
    assert store.abort_uploads("runs/c/") == 0
    assert [store.abort_uploads("runs/a/") for _ in range(2)] == [1, 0]
    assert len(list(tmp_path.rglob(".store-*"))) == 2
    assert store.abort_uploads("") == 1
    assert [path.name for path in tmp_path.rglob(".store-*")] == [".store-lock"]
    assert [info.key for info in store.list("")] == ["runs/b/kept"]


def test_what_a_killed_writer_leaves_in_s3_is_aborted(s3_uri: str, s3_proxy: FaultyProxy, s3_control: Control) -> None:
    for key in ("runs/a/data/1", "runs/b/data/1"):
        writer = subprocess.Popen([sys.executable, "-c", KILLED, s3_uri, key])
        s3_proxy.plan("PUT", lambda forward, writer=writer: writer.kill(), lambda forward: None)  # type: ignore[misc]
        assert writer.wait(timeout=PATIENCE) == -signal.SIGKILL
        s3_proxy.faults.clear()
    assert len([name for name in s3_control.uploads() if s3_uri.endswith("prefix") and "runs/" in name]) == 2
    store = open_store(s3_uri)
    assert store.abort_uploads("runs/c/") == 0
    assert [store.abort_uploads("runs/a/") for _ in range(2)] == [1, 0]
    assert store.abort_uploads("") == 1
    assert [name for name in s3_control.uploads() if name.startswith(bucket_and_prefix(s3_uri)[0])] == []
    assert list(store.list("")) == []


def test_a_listing_of_uploads_that_is_refused_is_a_fault(s3_uri: str, s3_proxy: FaultyProxy) -> None:
    s3_proxy.plan("GET", refuse(403, "AccessDenied"))
    with pytest.raises(StoreError) as caught:
        open_store(s3_uri).abort_uploads("runs/")
    assert caught.value.code == "AccessDenied"


def test_s3_keeps_the_checksum_of_the_whole(s3_uri: str) -> None:
    bucket, prefix = bucket_and_prefix(s3_uri)
    for size in (1000, 2 * PARTS):
        checksums = put(open_store(s3_uri), "x", body_of(size))
        found = boto3.session.Session().client("s3").head_object(
            Bucket=bucket, Key=f"{prefix}/x", ChecksumMode="ENABLED"
        )  # fmt: skip
        assert found["ChecksumCRC64NVME"] == base64_of(checksums.whole)


def test_a_part_that_fails_is_sent_again(s3_uri: str, s3_proxy: FaultyProxy) -> None:
    store, body = open_store(s3_uri), body_of(2 * PARTS)
    s3_proxy.plan("PUT", refuse(503, "SlowDown"), lambda forward: None)
    put(store, "x", body)
    assert store.get("x") == body


def test_a_large_write_that_fails_leaves_the_old_object_and_no_parts(
    s3_uri: str, s3_proxy: FaultyProxy, s3_control: Control
) -> None:
    store, body = open_store(s3_uri), body_of(3 * PARTS)
    store.put("x", b"old")
    for method in ("PUT", "POST"):
        if method == "POST":
            s3_proxy.plan("POST", lambda forward: forward(), refuse(403, "AccessDenied"))
        else:
            s3_proxy.plan("PUT", refuse(403, "AccessDenied"))
        with pytest.raises(StoreError) as caught:
            put(store, "x", body)
        assert caught.value.code == "AccessDenied"
        s3_proxy.faults.clear()
    assert store.get("x") == b"old"
    assert [name for name in s3_control.uploads() if name.startswith(bucket_and_prefix(s3_uri)[0])] == []


def test_a_lost_acknowledgement_of_the_end_is_no_failure(s3_uri: str, s3_proxy: FaultyProxy) -> None:
    store, body = open_store(s3_uri), body_of(2 * PARTS)
    s3_proxy.plan("POST", lambda forward: forward(), lose_answer)
    put(store, "x", body)
    assert store.get("x") == body
    assert len([line for line in s3_proxy.requests if line.startswith("POST")]) == 3  # it was asked for again


def test_an_upload_that_another_one_aborted_is_a_failure(s3_uri: str, s3_proxy: FaultyProxy) -> None:
    store = open_store(s3_uri)
    put(store, "x", body_of(2 * PARTS))  # as large, but another one

    def swept_before(forward: object) -> None:
        assert open_store(s3_uri).abort_uploads("") == 1

    s3_proxy.plan("POST", lambda forward: forward(), swept_before)
    with pytest.raises(StoreError) as caught:
        put(store, "x", body_of(2 * PARTS))
    assert caught.value.code == "NoSuchUpload"


@pytest.fixture
def tls_proxy(s3_uri: str, s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """A proxy that speaks TLS, with a certificate of its own that this process trusts."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(1), now + timedelta(1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), False)
    certificate = builder.add_extension(x509.BasicConstraints(True, None), True).sign(key, hashes.SHA256())
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    path = tmp_path / "certificate.pem"
    path.write_bytes(
        certificate.public_bytes(pem) + key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    proxy = FaultyProxy(s3_endpoint, context)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(path))
    yield proxy
    proxy.close()


def test_over_tls_a_body_is_read_once_for_its_crc64_and_for_no_other_digest(
    s3_uri: str, tls_proxy: FaultyProxy
) -> None:
    store, body = open_store(s3_uri), body_of(2 * PARTS)
    checksums = put(store, "x", body)
    assert store.get("x") == body
    sent = [
        headers for line, headers in zip(tls_proxy.requests, tls_proxy.headers, strict=True) if "partNumber" in line
    ]
    assert sorted(headers["x-amz-checksum-crc64nvme"] for headers in sent) == sorted(map(base64_of, checksums.parts))
    for headers in sent:
        assert headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
        assert {name for name in headers if name.startswith("x-amz-checksum")} == {"x-amz-checksum-crc64nvme"}
        assert "content-md5" not in headers
