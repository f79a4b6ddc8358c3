"""One suite of contract tests against both stores, S3 over HTTP."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.stores import MIB, bucket_and_prefix, streamed
from trainer.contract import UserError
from trainer.store import ConflictError, NotFoundError, ObjectStore, StoreError, open_store
from trainer.store.checksum import Checksums


def test_what_was_put_is_read_back_whole_in_part_and_into_a_buffer(store: ObjectStore) -> None:
    body = bytes(range(256)) * 10
    etag = store.put("runs/a/x.bin", body)
    assert store.get("runs/a/x.bin") == body
    assert store.get_with_etag("runs/a/x.bin") == (body, etag)
    info = store.info("runs/a/x.bin")
    assert (info.key, info.bytes, info.etag) == ("runs/a/x.bin", len(body), etag)
    assert store.read_range("runs/a/x.bin", 250, 20) == body[250:270]
    assert store.read_range("runs/a/x.bin", len(body) - 1, 1) == body[-1:]
    for start, size in ((0, len(body)), (250, 20), (len(body) - 1, 1)):
        for buffer in (7, MIB):
            assert streamed(store, "runs/a/x.bin", start, size, buffer) == body[start : start + size]
    target = bytearray(len(body))
    store.read_into("runs/a/x.bin", memoryview(target))
    assert target == body


def test_an_empty_object_is_an_object(store: ObjectStore) -> None:
    store.put("empty", b"")
    assert store.get("empty") == b""
    assert store.info("empty").bytes == 0
    store.read_into("empty", memoryview(bytearray()))


def test_a_missing_key_is_not_found_by_every_read(store: ObjectStore) -> None:
    store.put("runs/a", b"1")
    for key in ("nothing", "runs", "runs/a/below", "runs/aa"):
        for read in (
            store.get,
            store.get_with_etag,
            store.info,
            lambda key: store.read_range(key, 0, 1),
            lambda key: streamed(store, key, 0, 1),
            lambda key: store.read_into(key, memoryview(bytearray(1))),
        ):
            with pytest.raises(NotFoundError, match=re.escape(store.describe(key))):
                read(key)


def test_a_range_or_buffer_that_does_not_fit_the_object_is_a_fault(store: ObjectStore) -> None:
    store.put("x", b"12345")
    for start, size in ((0, 6), (4, 2), (5, 1), (9, 1)):
        for read in (store.read_range, lambda *arguments: streamed(store, *arguments)):
            with pytest.raises(StoreError) as caught:
                read("x", start, size)
            assert caught.value.code == "InvalidRange"
    for size in (0, 4, 6):
        with pytest.raises(StoreError, match=f"has 5 bytes.*not {size}"):
            store.read_into("x", memoryview(bytearray(size)))
    for start, size in ((-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="not a range"):
            store.read_range("x", start, size)
        with pytest.raises(ValueError, match="not a range"):
            streamed(store, "x", start, size)


def test_a_large_file_is_put_from_its_position_and_restored_byte_for_byte(store: ObjectStore, tmp_path: Path) -> None:
    body = os.urandom(1 * MIB) * 40 + b"tail"
    path = tmp_path / "large"
    path.write_bytes(b"header" + body)
    with path.open("rb") as file:
        file.seek(6)
        etag = store.put("checkpoints/a/data/1", file)
    assert store.info("checkpoints/a/data/1").etag == etag
    assert store.info("checkpoints/a/data/1").bytes == len(body)
    buffer = bytearray(len(body))
    store.read_into("checkpoints/a/data/1", memoryview(buffer))
    assert buffer == body
    assert store.read_range("checkpoints/a/data/1", 16 * MIB - 2, 4) == body[16 * MIB - 2 : 16 * MIB + 2]


def test_a_list_is_by_prefix_sorted_and_shows_nothing_but_objects(store: ObjectStore) -> None:
    keys = ["runs/b/1", "runs/a/2", "runs/a/10", "runs/ab", "runs.txt", "checkpoints/a"]
    for key in keys:
        store.create(key, key.encode())
        store.replace(key, key.encode() * 2, store.info(key).etag)
    assert [info.key for info in store.list("")] == sorted(keys)
    assert [info.key for info in store.list("runs/a")] == ["runs/a/10", "runs/a/2", "runs/ab"]
    assert [info.key for info in store.list("runs/a/")] == ["runs/a/10", "runs/a/2"]
    assert list(store.list("runs/c/")) == []
    assert list(store.list("runs/ab/")) == []
    assert list(store.list("runs/ab")) == [store.info("runs/ab")]
    assert [info.key for info in store.list("runs/", after="runs/a/10")] == ["runs/a/2", "runs/ab", "runs/b/1"]
    assert [info.key for info in store.list("runs/a", after="runs/a/2/~")] == ["runs/ab"]
    assert list(store.list("runs/a/", after="runs/b")) == []


def test_the_folders_below_a_folder_are_named_and_nothing_else(store: ObjectStore) -> None:
    for key in ("runs/b/1", "runs/a/2", "runs/a/deeper/10", "runs/ab", "runs.txt", "checkpoints/a"):
        store.put(key, b"body")
    assert store.folders("runs/") == ["a", "b"]
    assert store.folders("runs/a/") == ["deeper"]
    assert store.folders("nothing/") == []


def test_create_writes_once(store: ObjectStore) -> None:
    etag = store.create("runs/a/spec.json", b"one")
    for body in (b"two", b"one"):
        with pytest.raises(ConflictError, match=re.escape(store.describe("runs/a/spec.json"))):
            store.create("runs/a/spec.json", body)
    assert store.get_with_etag("runs/a/spec.json") == (b"one", etag)


def test_a_large_body_is_created_once_as_well(store: ObjectStore) -> None:
    body = os.urandom(MIB) * 17  # S3 takes it in two parts
    etag = store.create("datasets/a/1/shard", body)
    for other in (body, body[::-1]):
        with pytest.raises(ConflictError, match=re.escape(store.describe("datasets/a/1/shard"))):
            store.create("datasets/a/1/shard", other)
    assert store.get_with_etag("datasets/a/1/shard") == (body, etag)


def test_replace_writes_only_over_what_was_read(store: ObjectStore) -> None:
    with pytest.raises(ConflictError):
        store.replace("HEAD.json", b"0", '"none"')
    with pytest.raises(NotFoundError):
        store.get("HEAD.json")
    first = store.put("HEAD.json", b"1")
    second = store.replace("HEAD.json", b"2", first)
    assert second != first
    with pytest.raises(ConflictError, match=re.escape(store.describe("HEAD.json"))):
        store.replace("HEAD.json", b"3", first)
    assert store.get_with_etag("HEAD.json") == (b"2", second)
    third = store.put("HEAD.json", b"3")
    with pytest.raises(ConflictError):
        store.replace("HEAD.json", b"4", second)
    store.replace("HEAD.json", b"4", third)
    assert store.get("HEAD.json") == b"4"


def test_no_two_contents_share_an_etag_however_fast_they_follow(store: ObjectStore) -> None:
    etags = {store.put("HEAD.json", b"%03d" % number) for number in range(100)}
    assert len(etags) == 100


def test_a_retired_object_may_be_put_again_and_a_missing_one_be_retired(store: ObjectStore) -> None:
    store.put("checkpoints/a/1", b"old")
    store.retire("checkpoints/a/1")
    store.put("checkpoints/a/1", b"new")
    assert store.get("checkpoints/a/1") == b"new"
    store.retire("checkpoints/a/2")
    store.retire("checkpoints/a/1/below")


def test_what_is_no_key_is_refused_before_anything_is_touched(store: ObjectStore) -> None:
    for key in ("", "/etc/passwd", "../x", "a/../../x", "a//b", "a/", "./a", "a/.store-lock", "a\0b"):
        for call in (
            store.get,
            store.info,
            store.retire,
            store.probe,
            store.describe,
            lambda key: store.put(key, b""),
            lambda key: store.put_large(key, memoryview(b""), Checksums.of(memoryview(b""))),
            lambda key: store.create(key, b""),
            lambda key: store.replace(key, b"", "etag"),
            lambda key: store.read_range(key, 0, 1),
            lambda key: streamed(store, key, 0, 1),
            lambda key: store.read_into(key, memoryview(bytearray(1))),
        ):
            with pytest.raises(ValueError, match="is not a key"):
                call(key)
    for prefix in ("/", "..", "../", "a//", "/etc"):
        with pytest.raises(ValueError, match="is not a prefix"):
            list(store.list(prefix))
        with pytest.raises(ValueError, match="is not a prefix"):
            store.abort_uploads(prefix)
    assert list(store.list("")) == []


def test_a_probe_that_finds_all_well_leaves_one_object(store: ObjectStore) -> None:
    store.probe("runs/a/probe")
    store.probe("runs/a/probe")
    assert [info.key for info in store.list("")] == ["runs/a/probe"]


def test_the_description_names_the_place_in_full(store: ObjectStore) -> None:
    assert store.describe("runs/a") == f"{store.uri}/runs/a"
    assert open_store(store.uri).uri == store.uri


# Opening


@pytest.mark.parametrize(
    "uri",
    ["", " ", "s3:/bucket", "s3//bucket", "s3:bucket", "s3://", "s3:///prefix", "S3://bucket", "s3a://bucket/x", "gs://b/x",
     "https://bucket.s3.amazonaws.com/x", "file://relative", "file:/x", "s3://Bucket/x", "s3://b", "s3://bucket//x",
     "s3://bucket/a/../b"],
)  # fmt: skip
def test_a_mistyped_uri_is_refused_with_value_rule_and_fix(uri: str) -> None:
    with pytest.raises(UserError) as caught:
        open_store(uri)
    assert repr(uri) in str(caught.value)
    assert "a store is s3://bucket/prefix or a folder" in str(caught.value)
    assert "; write " in str(caught.value)


def test_a_folder_may_be_named_in_every_usual_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for uri in ("a b", "./a b", f"{tmp_path}/a b", f"file://{tmp_path}/a%20b", "~/a b"):
        assert open_store(uri).describe("k") == f"{tmp_path}/a b/k"


def test_a_bucket_needs_no_prefix(s3_uri: str) -> None:
    bucket, prefix = bucket_and_prefix(s3_uri)
    for uri in (f"s3://{bucket}", f"s3://{bucket}/"):
        top = open_store(uri)
        assert top.uri == f"s3://{bucket}"
        assert top.describe("k") == f"s3://{bucket}/k"
        open_store(s3_uri).put("k", b"1")
        assert [info.key for info in top.list("")] == [f"{prefix}/k"]


def test_settings_of_aws_that_boto3_refuses_are_the_users_to_correct(
    s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in (("AWS_PROFILE", "no-such-profile"), ("AWS_ENDPOINT_URL", "localhost:9000")):
        with monkeypatch.context() as patch:
            patch.setenv(variable, value)
            with pytest.raises(UserError, match=value) as caught:
                open_store(s3_uri)
        assert variable in str(caught.value)


def test_boto3_is_imported_only_for_s3(tmp_path: Path) -> None:
    code = f"""
import sys; before = set(sys.modules)
from trainer.store import open_store
open_store({str(tmp_path)!r}).probe("probe")
foreign = {{name.partition(".")[0] for name in set(sys.modules) - before}} - set(sys.stdlib_module_names)
assert foreign == {{"trainer"}}, foreign
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
