"""Reads S3: the answers to a listing, and an object, where it goes on if a connection was cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from botocore.exceptions import BotoCoreError, FlexibleChecksumError
from urllib3.exceptions import HTTPError

from trainer.store import READ_BYTES, StoreError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def list_entries(
    client: S3Client, bucket: str, prefix: str, page_keys: int, kind: str, options: Mapping[str, str]
) -> Iterator[Any]:
    """What the answers to a listing have of a kind, Contents or CommonPrefixes, one answer after the other."""
    pages: Any = client.get_paginator("list_objects_v2")
    for page in pages.paginate(Bucket=bucket, Prefix=prefix, PaginationConfig={"PageSize": page_keys}, **options):
        yield from page.get(kind, [])


class Body:
    """The bytes of an object, or of a range of it, as they arrive. botocore repeats a request that fails, but not a
    body that is cut off. This class goes on from there, if the object is still the same."""

    def __init__(self, send: Callable[[int, str], Any], what: str, attempts: int) -> None:
        self._send, self._what, self._attempts, self._cuts = send, what, attempts, 0
        answer = send(0, "")
        self.done, self.size, self.etag, self._stream = 0, int(answer["ContentLength"]), answer["ETag"], answer["Body"]

    def check_size(self, size: int) -> None:
        if self.size != size:
            self.close()
            raise StoreError(f"{self._what}: it has {self.size} bytes there, not {size}", "InvalidRange")

    def read_into(self, buffer: memoryview) -> memoryview:
        """Fill the buffer, which has the size of the body, and return it."""
        while self.done < self.size:
            self.read_some(buffer[self.done : self.done + READ_BYTES])
        return buffer

    def read_some(self, buffer: memoryview) -> int:
        """Read into the beginning of the buffer, which is at most as long as the rest. How many bytes came."""
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
