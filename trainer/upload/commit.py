"""How one checkpoint gets into the store: first its object, then its manifest.

The manifest has the SHA-256 of the object and of the manifest before it. HEAD.json has that of the newest manifest. So
whoever knows one digest, which the log tells, knows the whole line of checkpoints back from it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.contract import manifest_key, parse_manifest_key, seal, snapshot_key, unseal
from trainer.store import ConflictError, NotFoundError, ObjectStore, StoreError
from trainer.store.checksum import Checksums
from trainer.text import show_sha256


@dataclass(frozen=True)
class Commit:
    """A checkpoint on its way into the store."""

    data: str  # the key of its object
    key: str  # of its manifest
    manifest: bytes
    checksums: Checksums

    @classmethod
    def of(
        cls, run_id: str, attempt: int, said: Mapping[str, Any], checksums: Checksums, parent: Mapping[str, str]
    ) -> Commit:
        """`said` is what a trainer says of it; `parent` names the manifest before it, as `Lease.parent_of`."""
        data, key = (make(run_id, said["step"], attempt) for make in (snapshot_key, manifest_key))
        manifest = {**said, "object": {"key": data} | checksums.to_json(), "parent": parent}
        return cls(data, key, seal(manifest), checksums)

    @property
    def sha256(self) -> str:
        """Of its manifest, and so of all that it has."""
        return hashlib.sha256(self.manifest).hexdigest()

    def told(self) -> str:
        """For the log, before it counts: a log that is kept has the digest of all that do."""
        _, step = parse_manifest_key(self.key) or (0, 0)
        return f"storing step {step}, {show_sha256(self.sha256)}"

    def put(self, store: ObjectStore, body: memoryview) -> None:
        """Store the object, then the manifest. Neither is ever changed afterwards.

        A second call changes nothing. Raises StoreError.
        """
        store.put_large(self.data, body, self.checksums)
        try:
            store.create(self.key, self.manifest)
        except ConflictError as error:
            if store.get(self.key) != self.manifest:
                raise StoreError(f"{store.describe(self.key)} exists already, with other bytes: {error}") from error

    def is_stored(self, store: ObjectStore) -> bool:
        """Whether there is a manifest of the same bytes already. One of an older version says less of them."""
        try:
            there = unseal(store.get(self.key))["object"]
            return bool(self.checksums.is_same(Checksums.from_json(there)))
        except (NotFoundError, ValueError, KeyError, TypeError):
            return False


def attempt_of(key: str, default: int) -> int:
    """The attempt that wrote an object or a manifest of a checkpoint; `default` for any other key."""
    parts = key.rsplit("/", 2)
    number = parts[-1].split(".")[1] if parts[-2] in ("data", "manifest") and parts[-1].count(".") == 2 else ""
    return int(number) if number.isdecimal() else default
