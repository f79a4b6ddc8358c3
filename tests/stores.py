"""What the tests of the stores share."""

from __future__ import annotations

from tests.emulator.s3 import Control
from trainer.store import ObjectStore, open_store

MIB = 1 << 20
PROBE_KEY = "checkpoints/a/probe"


def streamed(store: ObjectStore, key: str, start: int, size: int, buffer: int = MIB) -> bytes:
    return b"".join(bytes(piece) for piece in store.stream(key, start, size, memoryview(bytearray(buffer))))


def probed(uri: str, control: Control, *lacks: str) -> tuple[ObjectStore, str]:
    """A store on an endpoint with these lacks, and what its probe says of them."""
    store = open_store(uri)
    control.set(lacks=lacks)
    return store, "\n".join(store.probe(PROBE_KEY, for_checkpoints=True))


def bucket_and_prefix(uri: str) -> tuple[str, str]:
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    return bucket, prefix
