"""Old versions in a bucket: what was overwritten or deleted there, until the bucket's lifecycle ends it.

Nothing here decides which version is the right one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from awscrt.checksums import crc64nvme
from botocore.exceptions import ClientError

from trainer.contract import SUPERSEDED_TAG, UserError
from trainer.store import READ_BYTES, NotFoundError, ObjectStore, StoreError, check_prefix
from trainer.store.s3 import S3Store
from trainer.store.s3_probe import refuses

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@dataclass(frozen=True, kw_only=True)
class Version:
    """One version of an object, or the mark that a deletion has left."""

    key: str
    id: str
    bytes: int = 0
    etag: str = ""
    modified: float = 0.0  # Unix seconds
    is_mark: bool = False


class Versions:
    """The versions in the bucket of a store. Raises StoreError as the store does."""

    def __init__(self, store: S3Store) -> None:
        self._store = store

    @property
    def _client(self) -> S3Client:
        return self._store._client

    def list(self, prefix: str) -> dict[str, list[Version]]:
        """All versions of the keys with this prefix, by key, the newest first."""
        whole, cut = self._store._prefix + check_prefix(prefix), len(self._store._prefix)
        found: dict[str, list[Version]] = {}
        with self._store._errors("list versions", prefix):
            pages: Any = self._client.get_paginator("list_object_versions").paginate(
                Bucket=self._store._bucket, Prefix=whole
            )
            for page in pages:  # S3 lists the versions of a key from the newest on, and marks apart from them
                for one in (*page.get("Versions", []), *page.get("DeleteMarkers", [])):
                    if not one["Key"].startswith(whole):  # nobody asked for it
                        continue
                    key = one["Key"][cut:]
                    version = Version(
                        key=key, id=one["VersionId"], bytes=one.get("Size", 0), etag=one.get("ETag", ""),
                        modified=one["LastModified"].timestamp(), is_mark="Size" not in one,
                    )  # fmt: skip
                    history = found.setdefault(key, [])
                    history.insert(0 if one["IsLatest"] else len(history), version)
        for history in found.values():
            history[1:] = sorted(history[1:], key=lambda version: -version.modified)
        return found

    def read(self, version: Version) -> bytes:
        return b"".join(self._pieces(version))

    def sums(self, version: Version) -> tuple[str, str]:
        """The SHA-256 and the CRC64NVME of its bytes, which are read for that."""
        sha256, crc = hashlib.sha256(), 0
        for piece in self._pieces(version):
            sha256.update(piece)
            crc = crc64nvme(piece, crc)
        return sha256.hexdigest(), f"{crc:016x}"

    def same(self, one: Version, other: Version) -> bool:
        """Whether two versions have the same bytes: if not the same etag, then both are read."""
        if one.bytes != other.bytes or one.etag == other.etag:
            return one.bytes == other.bytes
        return all(a == b for a, b in zip(self._pieces(one), self._pieces(other), strict=True))

    def is_superseded(self, version: Version) -> bool:
        """Whether it has the tag with which a run gives a checkpoint up."""
        with self._store._errors("tags", version.key):
            tags = self._client.get_object_tagging(**self._place(version))["TagSet"]
        return {"Key": SUPERSEDED_TAG[0], "Value": SUPERSEDED_TAG[1]} in tags

    def put_on_top(self, version: Version) -> None:
        """Copy a version to be the newest, with its tags. All others stay below it."""
        place = self._place(version)
        with self._store._errors("bring back", version.key):
            self._client.copy_object(Bucket=place["Bucket"], Key=place["Key"], CopySource=place)

    def remove_marks(self, marks: Sequence[Version]) -> None:
        """Undo deletions."""
        for mark in marks:
            assert mark.is_mark
            with self._store._errors("bring back", mark.key):
                self._client.delete_object(**self._place(mark))

    def untag(self, key: str) -> None:
        with self._store._errors("untag", key):
            self._client.delete_object_tagging(**self._store._place(key))

    def _pieces(self, version: Version) -> Iterator[bytes]:
        with self._store._errors("get", version.key):
            body = self._client.get_object(**self._place(version))["Body"]
            try:
                while piece := body.read(READ_BYTES):
                    yield piece
            finally:
                body.close()

    def _place(self, version: Version) -> Any:
        return {**self._store._place(version.key), "VersionId": version.id}


def open_versions(store: ObjectStore) -> Versions:
    """The versions of a store. Raises UserError, with the reason, where it has none: nothing is protected there."""
    lost = "what was overwritten or deleted there is gone"
    if not isinstance(store, S3Store):
        raise UserError(
            f"{store.uri} is a folder, which keeps no old versions: {lost}; look into a backup or the file system's "
            "snapshots, or use a bucket with versions as STORE="
        )
    bucket = f"the bucket of {store.uri}"
    try:
        with store._errors("versions of", ""):
            status = store._client.get_bucket_versioning(Bucket=store._bucket).get("Status", "")
    except StoreError as error:
        cause = error.__cause__
        if not isinstance(cause, ClientError) or not (refuses(cause) or isinstance(error, NotFoundError)):
            raise
        raise UserError(f"the endpoint of {store.uri} knows no old versions ({error.code}): {lost}") from error
    if not status:
        raise UserError(
            f"{bucket} keeps no old versions: {lost}; on AWS, `make deploy` turns them on for the time to come"
        )
    return Versions(store)
