"""How one checkpoint gets into the store: first its object, then its manifest."""

from __future__ import annotations

from trainer.contract import manifest_key, seal, snapshot_key
from trainer.process.channel import Message
from trainer.store import ConflictError, ObjectStore, StoreError
from trainer.store.checksum import Checksums


def put_checkpoint(
    store: ObjectStore, run_id: str, attempt: int, request: Message, body: memoryview, checksums: Checksums
) -> str:
    """Store the object, then its manifest, and return the manifest's key. Neither is ever changed afterwards.

    A second call with the same bytes changes nothing. Raises StoreError.
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


def attempt_of(key: str, default: int) -> int:
    """The attempt that wrote an object or a manifest of a checkpoint; `default` for any other key."""
    parts = key.rsplit("/", 2)
    number = parts[-1].split(".")[1] if parts[-2] in ("data", "manifest") and parts[-1].count(".") == 2 else ""
    return int(number) if number.isdecimal() else default
