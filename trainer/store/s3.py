"""The store in S3, by boto3. What the operations mean says `ObjectStore`; here is how S3 is brought to do them."""

from __future__ import annotations

import contextlib
import io
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

from trainer.contract import SUPERSEDED_TAG, UserError
from trainer.store import (
    READ_BYTES,
    ConflictError,
    NotFoundError,
    ObjectInfo,
    StoreError,
    check_key,
    check_prefix,
    check_range,
    probe_store,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@dataclass(frozen=True, kw_only=True)
class S3Settings:
    connect_timeout_seconds: float = 3
    read_timeout_seconds: float = 5  # per read of the socket: no limit for a large body that moves
    attempts: int = 3  # of one request, the first one included
    part_bytes: int = 16 << 20  # larger bodies go in parts of this size …
    parts_at_once: int = 4  # … so many at a time, which also bounds the memory
    connections: int = 16
    page_keys: int = 1000  # per request of a listing; S3 gives no more


class S3Store:
    """A bucket and a prefix. Endpoint, region and credentials come from AWS's own variables and files."""

    def __init__(self, bucket: str, prefix: str, settings: S3Settings = S3Settings()) -> None:
        self.uri = f"s3://{bucket}/{prefix}".removesuffix("/")
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._settings = settings
        config = Config(
            connect_timeout=settings.connect_timeout_seconds,
            read_timeout=settings.read_timeout_seconds,
            retries={"mode": "standard", "total_max_attempts": settings.attempts},
            max_pool_connections=settings.connections,
            tcp_keepalive=True,
        )
        try:  # a session of its own: boto3's default one is not made for threads
            self._client: S3Client = boto3.session.Session().client("s3", config=config)
        except (BotoCoreError, ValueError) as error:
            fix = "correct AWS_PROFILE, AWS_ENDPOINT_URL, AWS_DEFAULT_REGION and the files in ~/.aws, or unset them"
            raise UserError(f"{self.uri} cannot be opened: {error}: boto3 refuses AWS's settings; {fix}") from error

    def describe(self, key: str) -> str:
        return f"s3://{self._bucket}/{self._key(key)}"

    def get(self, key: str) -> bytes:
        return self.get_with_etag(key)[0]

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        data, etag = self._read("get", key)
        return bytes(data), etag

    def head(self, key: str) -> ObjectInfo:
        name = self._key(key)
        try:
            with self._errors("head", key):
                answer = self._client.head_object(Bucket=self._bucket, Key=name)
        except StoreError as error:
            if error.code != "404":
                raise
            # An answer to HEAD has no body: only another request tells a missing key from a missing bucket.
            with self._errors("head", key):
                self._client.list_objects_v2(Bucket=self._bucket, Prefix=name, MaxKeys=1)
            raise NotFoundError(str(error), error.code) from error
        return ObjectInfo(key, answer["ContentLength"], answer["ETag"])

    def read_range(self, key: str, start: int, size: int) -> bytes:
        check_range(start, size)
        return bytes(self._read("read", key, start, memoryview(bytearray(size)), ranged=True)[0])

    def read_into(self, key: str, buffer: memoryview) -> None:
        self._read("read", key, 0, buffer.cast("B"))

    def put(self, key: str, body: bytes | BinaryIO) -> str:
        name = self._key(key)
        file = io.BytesIO(body) if isinstance(body, bytes) else body
        first = file.tell()
        size = file.seek(0, io.SEEK_END) - first
        file.seek(first)
        with self._errors("put", key):
            if size > self._settings.part_bytes:
                return self._put_parts(name, file)
            return self._client.put_object(Bucket=self._bucket, Key=name, Body=file.read())["ETag"]

    def create(self, key: str, body: bytes) -> str:
        name = self._key(key)
        return self._put_if(
            "create", key, body,
            lambda: self._client.put_object(Bucket=self._bucket, Key=name, Body=body, IfNoneMatch="*")["ETag"],
        )  # fmt: skip

    def replace(self, key: str, body: bytes, etag: str) -> str:
        name = self._key(key)
        return self._put_if(
            "replace", key, body,
            lambda: self._client.put_object(Bucket=self._bucket, Key=name, Body=body, IfMatch=etag)["ETag"],
        )  # fmt: skip

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        whole = self._prefix + check_prefix(prefix)
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=whole, PaginationConfig={"PageSize": self._settings.page_keys}
        )
        with self._errors("list", prefix):
            for page in pages:
                for found in page.get("Contents", []):
                    if not found["Key"].endswith("/"):  # what the console makes to show a folder
                        yield ObjectInfo(found["Key"].removeprefix(self._prefix), found["Size"], found["ETag"])

    def retire(self, key: str) -> None:
        """No one may delete: the bucket's lifecycle expires what bears the tag. Until then it can still be read."""
        tagging: Any = {"TagSet": [{"Key": SUPERSEDED_TAG[0], "Value": SUPERSEDED_TAG[1]}]}
        with contextlib.suppress(NotFoundError), self._errors("retire", key):
            self._client.put_object_tagging(Bucket=self._bucket, Key=self._key(key), Tagging=tagging)

    def probe(self, key: str) -> None:
        probe_store(self, key)

    def _key(self, key: str) -> str:
        return self._prefix + check_key(key)

    def _read(
        self, operation: str, key: str, start: int = 0, into: memoryview | None = None, *, ranged: bool = False
    ) -> tuple[memoryview, str]:
        """Read until `into` is full (None: as large as the object). botocore repeats a request that fails, but not a
        body that is cut off: this goes on where it ended, if the object is still the same."""
        done, etag, cuts = 0, "", 0
        while True:
            arguments: dict[str, Any] = {"IfMatch": etag} if etag else {}
            if (ranged or done) and into is not None:
                arguments["Range"] = f"bytes={start + done}-{start + len(into) - 1}"
            with self._errors(operation, key):
                answer = self._client.get_object(Bucket=self._bucket, Key=self._key(key), **arguments)
            size, etag, body = answer["ContentLength"], answer["ETag"], answer["Body"]
            if into is None:
                into = memoryview(bytearray(size))
            if size != len(into) - done:
                body.close()
                message = f"{operation} {self.describe(key)}: it has {size} bytes there, not {len(into) - done}"
                raise StoreError(message, "InvalidRange")
            try:
                while done < len(into):
                    done += body.readinto(cast("Any", into[done : done + READ_BYTES]))
            except (BotoCoreError, HTTPError, OSError) as error:
                body.close()
                cuts += 1
                if cuts == self._settings.attempts:
                    message = f"{operation} {self.describe(key)}: cut off {cuts} times, at byte {done}: {error}"
                    raise StoreError(message, type(error).__name__) from error
                continue
            with self._errors(operation, key):
                body.read()  # the end: botocore compares the checksum here
            return into, etag

    def _put_if(self, operation: str, key: str, body: bytes, write: Callable[[], str]) -> str:
        """A conditional write whose acknowledgement may get lost: then botocore's next try is refused because of our
        own object, which is recognised by its body. Without such a next try a refusal is a refusal."""
        maybe_written = False
        for attempt in range(self._settings.attempts):
            try:
                with self._errors(operation, key):
                    return write()
            except StoreError as error:
                if not isinstance(error.__cause__, ClientError):
                    raise
                maybe_written |= error.__cause__.response["ResponseMetadata"].get("RetryAttempts", 0) > 0
                if error.code == "ConditionalRequestConflict":  # another request for the key is under way
                    time.sleep(0.1 * 2**attempt)
                    refusal = error
                    continue
                if error.code not in ("PreconditionFailed", "NoSuchKey"):
                    raise
                if maybe_written:
                    with contextlib.suppress(NotFoundError):
                        current, etag = self.get_with_etag(key)
                        if current == body:
                            return etag
                raise ConflictError(str(error), error.code) from error
        raise refusal

    def _put_parts(self, name: str, file: BinaryIO) -> str:
        upload = self._client.create_multipart_upload(Bucket=self._bucket, Key=name)["UploadId"]

        def send(number: int, part: bytes) -> Any:
            answer = self._client.upload_part(
                Bucket=self._bucket, Key=name, UploadId=upload, PartNumber=number, Body=part
            )
            return {"PartNumber": number} | {k: v for k, v in answer.items() if k == "ETag" or k.startswith("Checksum")}

        sent: list[Any] = []
        pending: deque[Future[Any]] = deque()
        try:
            with ThreadPoolExecutor(self._settings.parts_at_once) as pool:
                for number, part in enumerate(iter(lambda: file.read(self._settings.part_bytes), b""), 1):
                    pending.append(pool.submit(send, number, part))
                    if len(pending) == self._settings.parts_at_once:
                        sent.append(pending.popleft().result())
                sent += [future.result() for future in pending]
            return self._client.complete_multipart_upload(
                Bucket=self._bucket, Key=name, UploadId=upload, MultipartUpload={"Parts": sent}
            )["ETag"]
        except BaseException:
            with contextlib.suppress(StoreError), self._errors("abort", name):  # else the bucket's lifecycle does it
                self._client.abort_multipart_upload(Bucket=self._bucket, Key=name, UploadId=upload)
            raise

    @contextlib.contextmanager
    def _errors(self, operation: str, key: str) -> Iterator[None]:
        place = f"{operation} s3://{self._bucket}/{self._prefix}{key}"
        try:
            yield
        except ClientError as error:
            code = error.response["Error"]["Code"]
            message = f"{place}: {code}: {error.response['Error'].get('Message', '')}"
            raise (NotFoundError if code == "NoSuchKey" else StoreError)(message, code) from error
        except BotoCoreError as error:
            raise StoreError(f"{place}: {error}", type(error).__name__) from error
