"""The store in S3, by boto3. What the operations mean says `ObjectStore`; here is how S3 is brought to do them."""

from __future__ import annotations

import contextlib
import io
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, FlexibleChecksumError
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
from trainer.store.background import in_background

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
        with self._open("get", key) as body:
            return bytes(body.read_into(memoryview(bytearray(body.size)))), body.etag

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
        with self._open("read", key, start, size) as body:
            return bytes(body.read_into(memoryview(bytearray(size))))

    def stream(self, key: str, start: int, size: int, buffer: memoryview) -> Iterator[memoryview]:
        check_range(start, size)
        with self._open("read", key, start, size) as body:
            while left := body.size - body.done:
                yield buffer[: body.read_some(buffer[:left])]

    def read_into(self, key: str, buffer: memoryview) -> None:
        view = buffer.cast("B")
        with self._open("read", key) as body:
            body.check_size(len(view))
            body.read_into(view)

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

    def _open(self, operation: str, key: str, start: int = 0, size: int | None = None) -> closing[_Body]:
        """The answer to a read of `size` bytes from `start`, or of the whole object."""
        name = self._key(key)

        def send(done: int, etag: str) -> Any:
            arguments: dict[str, Any] = {"IfMatch": etag} if etag else {}
            if done or size is not None:
                arguments["Range"] = f"bytes={start + done}-{'' if size is None else start + size - 1}"
            with self._errors(operation, key):
                return self._client.get_object(Bucket=self._bucket, Key=name, **arguments)

        body = _Body(send, f"{operation} {self.describe(key)}", self._settings.attempts)
        if size is not None:
            body.check_size(size)
        return closing(body)

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
            for number, part in enumerate(iter(lambda: file.read(self._settings.part_bytes), b""), 1):
                pending.append(in_background(partial(send, number, part)))
                if len(pending) == self._settings.parts_at_once:
                    sent.append(pending.popleft().result())
            sent += [future.result() for future in pending]
            return self._client.complete_multipart_upload(
                Bucket=self._bucket, Key=name, UploadId=upload, MultipartUpload={"Parts": sent}
            )["ETag"]
        except BaseException:
            wait(pending)  # a part that arrives after the end of its upload would stay
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


class _Body:
    """The bytes of an object, or of a range of it, on their way. botocore repeats a request that fails, but not a body
    that is cut off: this goes on where it ended, if the object is still the same."""

    def __init__(self, send: Callable[[int, str], Any], what: str, attempts: int) -> None:
        self._send, self._what, self._attempts, self._cuts = send, what, attempts, 0
        answer = send(0, "")
        self.done, self.size, self.etag, self._stream = 0, int(answer["ContentLength"]), answer["ETag"], answer["Body"]

    def check_size(self, size: int) -> None:
        if self.size != size:
            self.close()
            raise StoreError(f"{self._what}: it has {self.size} bytes there, not {size}", "InvalidRange")

    def read_into(self, buffer: memoryview) -> memoryview:
        """Fill the buffer, which is as large as the body, and return it."""
        while self.done < self.size:
            self.read_some(buffer[self.done : self.done + READ_BYTES])
        return buffer

    def read_some(self, buffer: memoryview) -> int:
        """How many bytes have come to the beginning of the buffer, which is no longer than what is left."""
        while True:
            try:
                count = int(self._stream.readinto(cast("Any", buffer)))
                if self.done + count == self.size:
                    self._stream.read()  # the end: botocore compares the checksum here
                self.done += count
                return count
            except FlexibleChecksumError as error:
                raise StoreError(f"{self._what}: {error}", type(error).__name__) from error
            except (BotoCoreError, HTTPError, OSError) as error:
                self._cuts += 1
                if self._cuts == self._attempts:
                    message = f"{self._what}: cut off {self._cuts} times, at byte {self.done}: {error}"
                    raise StoreError(message, type(error).__name__) from error
            self.close()
            answer = self._send(self.done, self.etag)
            self._stream = answer["Body"]
            if (left := answer["ContentLength"]) != self.size - self.done:
                message = f"{self._what}: {left} bytes follow byte {self.done} there, not {self.size - self.done}"
                raise StoreError(message, "InvalidRange")

    def close(self) -> None:
        self._stream.close()
