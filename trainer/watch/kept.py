"""A store that keeps what it has read of objects that do not change, so that a page that stays open reads little."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, cast

from trainer.store import ObjectInfo, ObjectStore

_LASTING = re.compile(r"runs/[^/]+/(metrics|telemetry|evaluations)/|checkpoints/[^/]+/manifest/")


class KeptStore:
    """Reads through to a store. The body of a key that was listed is read once for each etag."""

    def __init__(self, store: ObjectStore):
        self._store = store
        self._etags: dict[str, str] = {}
        self._bodies: dict[str, tuple[str, bytes]] = {}  # etag and body

    @classmethod
    def around(cls, store: ObjectStore) -> ObjectStore:
        return cast("ObjectStore", cls(store))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        for info in self._store.list(prefix, after):
            if _LASTING.match(info.key):
                self._etags[info.key] = info.etag
            yield info

    def get(self, key: str) -> bytes:
        etag = self._etags.get(key)
        kept = self._bodies.get(key)
        if kept is not None and kept[0] == etag:
            return kept[1]
        body = self._store.get(key)
        if etag is not None:
            self._bodies[key] = (etag, body)
        return body
