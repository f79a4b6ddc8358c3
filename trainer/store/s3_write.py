"""Writes a large object to S3, in parts."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, wait
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO

from botocore.exceptions import BotoCoreError, ClientError

from trainer.store.background import in_background
from trainer.store.checksum import Checksums, base64_of

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# How an endpoint compares what arrives with what was sent. Nobody but S3 itself is sure to know the first way.
CRC64NVME, MD5, UNCOMPARED = "CRC64NVME", "MD5", ""
_ALGORITHM: dict[str, Any] = {"ChecksumAlgorithm": CRC64NVME}


class ViewFile:
    """Lets botocore read a memoryview as a file, without a copy. urllib3 reads and sends 16 KiB at a time; larger
    pieces were no faster over TLS (0.55 CPU-seconds per GB, half of what bytes cost)."""

    def __init__(self, view: memoryview) -> None:
        self._view, self._at = view, 0

    def __len__(self) -> int:
        return len(self._view)

    def read(self, size: int = -1) -> memoryview:
        piece = self._view[self._at :] if size < 0 else self._view[self._at : self._at + size]
        self._at += len(piece)
        return piece

    def readinto(self, buffer: memoryview) -> int:
        piece = self.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._view)}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def release(self) -> None:
        self._view.release()


def put_file(
    client: S3Client,
    place: dict[str, Any],
    file: BinaryIO,
    part_bytes: int,
    at_once: int,
    condition: dict[str, Any],
) -> str:
    """Write a file, which is read part by part; returns the etag. The end of the upload has the condition."""
    bodies = ({"Body": part} for part in iter(lambda: file.read(part_bytes), b""))
    return _put_parts(client, place, bodies, at_once, {}, condition)


def put_view(
    client: S3Client, place: dict[str, Any], view: memoryview, checksums: Checksums, at_once: int, compared_by: str
) -> None:
    """Write a view without a copy. The endpoint compares the checksums, in the way that it knows."""
    if len(checksums.parts) < 2:
        with _sent_from(view) as body:
            client.put_object(**place, **_compared(compared_by, view, checksums.whole), Body=body)
        return
    try:
        put_view_in_parts(client, place, view, checksums, at_once, compared_by)
    except ClientError as error:  # the upload is also gone if it was completed and the answer got lost
        if error.response["Error"]["Code"] != "NoSuchUpload" or not _holds(client, place, checksums):
            raise


def put_view_in_parts(
    client: S3Client,
    place: dict[str, Any],
    view: memoryview,
    checksums: Checksums,
    at_once: int,
    compared_by: str,
    *,
    damage: bytes = b"",
) -> None:
    """As `put_view`, in parts even if there is only one. With `damage`, each MD5 is of the part with that behind it."""
    begin: dict[str, Any] = {}
    end: dict[str, Any] = {}
    if compared_by == CRC64NVME:
        begin = _ALGORITHM | {"ChecksumType": "FULL_OBJECT"}
        end = {"ChecksumType": "FULL_OBJECT", "ChecksumCRC64NVME": base64_of(checksums.whole)}
        end |= {"MpuObjectSize": len(view)}
    pieces = (
        (view[number * checksums.part_bytes : (number + 1) * checksums.part_bytes], part)
        for number, part in enumerate(checksums.parts)
    )
    bodies = ({"Body": piece} | _compared(compared_by, piece, part, damage) for piece, part in pieces)
    _put_parts(client, place, bodies, at_once, begin, end)


def _compared(compared_by: str, view: memoryview, crc: str, damage: bytes = b"") -> dict[str, Any]:
    """What a request says of its body, so that the endpoint compares it."""
    if compared_by == CRC64NVME:
        return _ALGORITHM | {"ChecksumCRC64NVME": base64_of(crc)}
    if compared_by == MD5:
        digest = hashlib.md5(view, usedforsecurity=False)
        digest.update(damage)
        return {"ContentMD5": base64.b64encode(digest.digest()).decode()}
    return {}


def _holds(client: S3Client, place: dict[str, Any], checksums: Checksums) -> bool:
    with contextlib.suppress(ClientError, BotoCoreError):
        found = client.head_object(**place, ChecksumMode="ENABLED")
        same = found.get("ChecksumCRC64NVME") == base64_of(checksums.whole)
        return same and found["ContentLength"] == checksums.bytes
    return False


@contextlib.contextmanager
def _sent_from(body: Any) -> Iterator[Any]:
    """The body to send. Afterwards nothing here holds the view, so that its memory can be released."""
    if not isinstance(body, memoryview):
        yield body
        return
    file = ViewFile(body[:])
    try:
        yield file
    finally:
        file.release()


def _put_parts(
    client: S3Client,
    place: dict[str, Any],
    bodies: Iterable[dict[str, Any]],
    at_once: int,
    begin: dict[str, Any],
    end: dict[str, Any],
) -> str:
    """Upload the parts; returns the etag. `bodies` has the arguments of each part, `begin` and `end` of the whole."""
    upload = client.create_multipart_upload(**place, **begin)["UploadId"]

    def send(number: int, part: dict[str, Any]) -> Any:
        with _sent_from(part.pop("Body")) as body:
            answer = client.upload_part(**place, **part, UploadId=upload, PartNumber=number, Body=body)
        checksums = {name: value for name, value in (part | answer).items() if name.startswith("ChecksumC")}
        return {"PartNumber": number, "ETag": answer["ETag"]} | checksums

    sent: list[Any] = []
    pending: deque[Future[Any]] = deque()
    try:
        for number, part in enumerate(bodies, 1):
            pending.append(in_background(partial(send, number, part)))
            if len(pending) == at_once:
                sent.append(pending.popleft().result())
        sent += [future.result() for future in pending]
        done = client.complete_multipart_upload(**place, **end, UploadId=upload, MultipartUpload={"Parts": sent})
        return done["ETag"]
    except BaseException:
        wait(pending)  # a part that arrived after the end of its upload would stay
        with contextlib.suppress(ClientError, BotoCoreError):  # if this fails, the bucket's lifecycle does it
            client.abort_multipart_upload(**place, UploadId=upload)
        raise


def abort_uploads(client: S3Client, bucket: str, prefix: str) -> int:
    """End the uploads of keys with this prefix that are not complete; returns how many there were."""
    count = 0
    pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix)
    for upload in (upload for page in pages for upload in page.get("Uploads", [])):
        try:
            client.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
            count += 1
        except ClientError as error:
            if error.response["Error"]["Code"] != "NoSuchUpload":  # it has ended meanwhile
                raise
    return count
