"""A store that keeps what it has read of objects that do not change, so that a page that stays open reads little."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from typing import Any, cast

from trainer.store import ObjectInfo, ObjectStore

KEPT_BYTES = 256 << 20  # at most; a run of 100,000 steps has some 50 MB of rows
_LASTING = re.compile(r"runs/[^/]+/(metrics|telemetry|evaluations|nodes)/|checkpoints/[^/]+/manifest/")


class KeptStore:
    """Reads through to a store. The body of a key that was listed is read once for each etag.

    Bodies that were not asked for the longest go first, beyond `kept_bytes` in all.
    """

    def __init__(self, store: ObjectStore, kept_bytes: int = KEPT_BYTES):
        self._store, self._most = store, kept_bytes
        self._lock = threading.Lock()
        self._etags: dict[str, str] = {}
        self._bodies: dict[str, tuple[str, bytes]] = {}  # etag and body; what was asked for last is last
        self._bytes = 0

    @classmethod
    def around(cls, store: ObjectStore) -> ObjectStore:
        return cast("ObjectStore", cls(store))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        listed = set[str]()
        for info in self._store.list(prefix, after):
            if _LASTING.match(info.key):
                listed.add(info.key)
                self._etags[info.key] = info.etag
            yield info
        self._drop_removed(prefix, after, listed)

    def get(self, key: str) -> bytes:
        etag = self._etags.get(key)
        with self._lock:
            kept = self._bodies.pop(key, None)
            if kept is not None and kept[0] == etag:
                self._bodies[key] = kept
                return kept[1]
            self._bytes -= len(kept[1]) if kept else 0
        body = self._store.get(key)
        if etag is not None and len(body) <= self._most:
            self._keep(key, etag, body)
        return body

    def _keep(self, key: str, etag: str, body: bytes) -> None:
        with self._lock:
            self._forget(key)  # another thread may have read it meanwhile
            self._bodies[key] = (etag, body)
            self._bytes += len(body)
            while self._bytes > self._most:
                self._forget(next(iter(self._bodies)))

    def _drop_removed(self, prefix: str, after: str, listed: set[str]) -> None:
        """Forget what was listed before and is no longer there, as old checkpoints."""
        with self._lock:
            for key in (*self._etags,):
                if key.startswith(prefix) and key > after and key not in listed:
                    del self._etags[key]
                    self._forget(key)

    def _forget(self, key: str) -> None:
        kept = self._bodies.pop(key, None)
        self._bytes -= len(kept[1]) if kept else 0
