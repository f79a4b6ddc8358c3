"""One checkpoint into the store: its object, then its manifest."""

from __future__ import annotations

from trainer.contract import manifest_key, seal, snapshot_key
from trainer.process.channel import Message
from trainer.store import ConflictError, ObjectStore, StoreError
from trainer.store.checksum import Checksums


def put_checkpoint(
    store: ObjectStore, run_id: str, attempt: int, request: Message, body: memoryview, checksums: Checksums
) -> str:
    """The object, then its manifest, which are never changed afterwards; returns the manifest's key.

    Done once more with the same bytes, it changes nothing. Raises StoreError.
    """
    data, name = (make(run_id, request["step"], attempt) for make in (snapshot_key, manifest_key))
    store.put_large(data, body, checksums)
    manifest = seal(request["manifest"] | {"object": {"key": data} | checksums.to_json()})
    try:
        store.create(name, manifest)
    except ConflictError as error:
        if store.get(name) != manifest:
            raise StoreError(f"{store.describe(name)} exists already, with other bytes: {error}") from error
    return name


def data_key(manifest: str) -> str:
    """The key of the object that a manifest's key belongs to."""
    return manifest.replace("/manifest/", "/data/").removesuffix(".json") + ".safetensors"


def attempt_of(key: str, default: int) -> int:
    """The attempt that wrote an object of a checkpoint; `default` for other keys."""
    parts = key.rsplit("/", 2)
    number = parts[-1].split(".")[1] if parts[-2] in ("data", "manifest") and parts[-1].count(".") == 2 else ""
    return int(number) if number.isdecimal() else default
