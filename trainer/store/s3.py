"""The store in S3, by boto3. `ObjectStore` says what the operations mean."""

from __future__ import annotations

import contextlib
import io
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO

from botocore.exceptions import BotoCoreError, ClientError

from trainer.contract import UserError, check_key
from trainer.store import (
    ConflictError,
    NotFoundError,
    ObjectInfo,
    StoreError,
    check_prefix,
    check_range,
    check_size,
    naming_the_fix,
)
from trainer.store.checksum import Checksums
from trainer.store.probe import MISWRITTEN, PROBE, probe_conditions, probe_store
from trainer.store.s3_client import S3Settings, connect
from trainer.store.s3_probe import DELETE, KEEP, TAG, TAGGING, UNSIGNED, Ways, find_ways, refuses
from trainer.store.s3_read import Body, list_entries
from trainer.store.s3_write import abort_uploads, put_file, put_view

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_STALE = {
    "ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired", "InvalidAccessKeyId",
    "RequestExpired", "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError",
}  # fmt: skip
_DEFAULTS = S3Settings()


class S3Store:
    """A bucket and a prefix. Endpoint, region and credentials come from AWS's own variables and files."""

    def __init__(self, bucket: str, prefix: str, settings: S3Settings = _DEFAULTS) -> None:
        self.uri = f"s3://{bucket}/{prefix}".removesuffix("/")
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._settings = settings
        self._ways = Ways()
        self._lock = threading.Lock()
        self._connected: S3Client | None = None
        try:
            _ = self._client
        except StoreError as error:
            if error.code == "CredentialRetrievalError":  # they may be there once something is asked
                return
            fix = "correct AWS_PROFILE, AWS_ENDPOINT_URL, AWS_DEFAULT_REGION and the files in ~/.aws, or unset them"
            raise UserError(f"{error}; {fix}") from error

    @property
    def _client(self) -> S3Client:
        """boto3's client. It is made anew after its credentials were refused: a client keeps the credentials that it
        has read, and a new session reads variables, files and the machine's role again."""
        with self._lock:
            if self._connected is None:
                try:
                    self._connected = connect(self._settings)
                except (BotoCoreError, ValueError) as error:
                    message = f"{self.uri} cannot be opened: {error}: boto3 refuses AWS's settings"
                    raise StoreError(message, type(error).__name__) from error
            return self._connected

    def describe(self, key: str) -> str:
        return f"s3://{self._bucket}/{self._key(key)}"

    def get(self, key: str) -> bytes:
        return self.get_with_etag(key)[0]

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        with self._open("get", key) as body:
            return bytes(body.read_into(memoryview(bytearray(body.size)))), body.etag

    def info(self, key: str) -> ObjectInfo:
        name = self._key(key)
        try:
            with self._errors("head", key):
                answer = self._client.head_object(Bucket=self._bucket, Key=name)
        except StoreError as error:
            if error.code not in ("400", "403", "404"):
                raise
            # An answer to HEAD has no body. Another request tells a missing key from a missing bucket, and expired
            # credentials from missing permission.
            with self._errors("head", key):
                self._client.list_objects_v2(Bucket=self._bucket, Prefix=name, MaxKeys=1)
            if error.code != "404":
                raise
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

    def read_into(self, key: str, buffer: memoryview, start: int | None = None) -> None:
        view = buffer.cast("B")
        if start is not None:
            check_range(start, len(view))
        with self._open("read", key, start or 0, None if start is None else len(view)) as body:
            body.check_size(len(view))
            body.read_into(view)

    def put(self, key: str, body: bytes | BinaryIO) -> str:
        place = self._place(key)
        with self._errors("put", key):
            return self._write(place, body)

    def put_large(self, key: str, body: memoryview, checksums: Checksums) -> None:
        place, view = self._place(key), check_size(body, checksums)
        with self._errors("put", key):
            put_view(self._client, place, view, checksums, self._settings.parts_at_once, self._ways.compared_by)

    def create(self, key: str, body: bytes) -> str:
        return self._put_if("create", key, body, partial(self._write, self._place(key), body, IfNoneMatch="*"))

    def replace(self, key: str, body: bytes, etag: str) -> str:
        if self._ways.bare_etags:
            etag = etag.strip('"')
        return self._put_if("replace", key, body, partial(self._write, self._place(key), body, IfMatch=etag))

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        with self._errors("list", prefix):
            for found in self._listed("Contents", prefix, {"StartAfter": self._prefix + after} if after else {}):
                if not found["Key"].endswith("/"):  # the console makes such keys to show a folder
                    yield ObjectInfo(found["Key"].removeprefix(self._prefix), found["Size"], found["ETag"])

    def folders(self, folder: str) -> Sequence[str]:
        with self._errors("list", folder):
            named = [found["Prefix"] for found in self._listed("CommonPrefixes", folder, {"Delimiter": "/"})]
        return sorted(name.removeprefix(self._prefix + folder).removesuffix("/") for name in named)

    def _listed(self, kind: str, prefix: str, options: Mapping[str, str]) -> Iterator[Any]:
        whole, size = self._prefix + check_prefix(prefix), self._settings.page_keys
        return list_entries(self._client, self._bucket, whole, size, kind, options)

    def retire(self, key: str) -> None:
        """Tag the object, so that the bucket's lifecycle expires it: on AWS no role may delete. Until then it can be
        read. Where nothing would expire it, delete it, as a folder does."""
        with contextlib.suppress(NotFoundError), self._errors("retire", key):
            if self._ways.gives_up_by == TAG:
                self._client.put_object_tagging(**self._place(key), Tagging=TAGGING)
            if self._ways.gives_up_by == DELETE:
                self._client.delete_object(**self._place(key))

    @property
    def keeps_all(self) -> bool:
        return self._ways.gives_up_by == KEEP

    def abort_uploads(self, prefix: str) -> int:
        whole = self._prefix + check_prefix(prefix)
        with self._errors("abort", prefix):
            return abort_uploads(self._client, self._bucket, whole)

    def free_bytes(self) -> None:
        return None

    def probe(self, key: str, *, for_checkpoints: bool = False, creates: bool = False) -> tuple[str, ...]:
        check_key(key)
        with naming_the_fix(f"the store {self.uri}"):
            lacks = self._probe_plainly(key, creates=creates)
            if for_checkpoints:
                self._probe_conditions(key)
                with self._errors("probe", key):
                    self._ways, more = find_ways(self._client, self._place(key), PROBE, self._ways)
                lacks += more
        return tuple(f"{self.uri}: {lack}" for lack in lacks)

    def _probe_plainly(self, key: str, *, creates: bool) -> tuple[str, ...]:
        """What a folder is asked as well. If boto3's own checksums are the reason of a failure, leave them out."""
        try:
            probe_store(self, key, creates=creates)
        except StoreError as error:
            if not self._settings.adds_checksums or not (error.is_refusal or error.code in (MISWRITTEN, *UNSIGNED)):
                raise
            refusal, before = error, self._settings
        else:
            return ()
        self._settings, self._connected = replace(before, adds_checksums=False), None
        try:
            probe_store(self, key, creates=creates)
        except StoreError:
            self._settings, self._connected = before, None
            raise refusal from refusal.__cause__
        return (
            "the endpoint does not know the checksums that boto3 adds to a body: they are left out. Set "
            "AWS_REQUEST_CHECKSUM_CALCULATION=when_required for all commands that use this store",
        )

    def _probe_conditions(self, key: str) -> None:
        try:
            probe_conditions(self, key)
        except UserError:
            if self._ways.bare_etags:
                raise
            self._ways = replace(self._ways, bare_etags=True)
            probe_conditions(self, key)

    def _key(self, key: str) -> str:
        return self._prefix + check_key(key)

    def _place(self, key: str) -> dict[str, Any]:
        return {"Bucket": self._bucket, "Key": self._key(key)}

    def _write(self, place: dict[str, Any], body: bytes | BinaryIO, **condition: str) -> str:
        file = io.BytesIO(body) if isinstance(body, bytes) else body
        first, settings = file.tell(), self._settings
        size = file.seek(0, io.SEEK_END) - first
        file.seek(first)
        if size > settings.part_bytes:
            return put_file(self._client, place, file, settings.part_bytes, settings.parts_at_once, condition)
        whole: dict[str, Any] = place | condition
        return self._client.put_object(**whole, Body=file.read())["ETag"]

    def _open(self, operation: str, key: str, start: int = 0, size: int | None = None) -> closing[Body]:
        """Begin to read `size` bytes from `start`, or the whole object."""
        name = self._key(key)

        def send(done: int, etag: str) -> Any:
            arguments: dict[str, Any] = {"IfMatch": etag} if etag else {}
            if done or size is not None:
                arguments["Range"] = f"bytes={start + done}-{'' if size is None else start + size - 1}"
            with self._errors(operation, key):
                return self._client.get_object(Bucket=self._bucket, Key=name, **arguments)

        body = Body(send, f"{operation} {self.describe(key)}", self._settings.attempts)
        if size is not None:
            body.check_size(size)
        return closing(body)

    def _put_if(self, operation: str, key: str, body: bytes, write: Callable[[], str]) -> str:
        """A conditional write. If its acknowledgement gets lost, botocore tries again, and S3 refuses because of our
        own object: its body shows that. If botocore did not try again, a refusal is a conflict."""
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
                if error.code not in ("PreconditionFailed", "NoSuchKey", "NoSuchUpload"):
                    raise
                if maybe_written:
                    with contextlib.suppress(NotFoundError):
                        current, etag = self.get_with_etag(key)
                        if current == body:
                            return etag
                raise ConflictError(str(error), error.code) from error
        raise refusal

    @contextlib.contextmanager
    def _errors(self, operation: str, key: str) -> Iterator[None]:
        place = f"{operation} s3://{self._bucket}/{self._prefix}{key}"
        try:
            yield
        except ClientError as error:
            code = error.response["Error"]["Code"]
            self._forget(code)
            message = f"{place}: {code}: {error.response['Error'].get('Message') or ''}"
            kind = NotFoundError if code == "NoSuchKey" else StoreError
            raise kind(message, code, is_refusal=refuses(error) and code != "PreconditionFailed") from error
        except BotoCoreError as error:
            self._forget(type(error).__name__)
            raise StoreError(f"{place}: {error}", type(error).__name__) from error
        except RuntimeError as error:  # botocore has no class for this: it has read them anew, and they end in the past
            if "credentials" not in str(error):
                raise
            raise StoreError(f"{place}: {error}", "ExpiredToken") from error
        except KeyError as error:  # a proxy has answered with a page of its own
            raise StoreError(f"{place}: the answer has no {error}: it is not S3's", "BadAnswer") from error

    def _forget(self, code: str) -> None:
        if code in _STALE:
            with self._lock:
                self._connected = None
