"""What the tests of the stores share."""

from __future__ import annotations

from trainer.store import ObjectStore

MIB = 1 << 20


def streamed(store: ObjectStore, key: str, start: int, size: int, buffer: int = MIB) -> bytes:
    return b"".join(bytes(piece) for piece in store.stream(key, start, size, memoryview(bytearray(buffer))))


def bucket_and_prefix(uri: str) -> tuple[str, str]:
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    return bucket, prefix
