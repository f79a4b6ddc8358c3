"""A folder as a store that counts what it is asked, and does something at one of those moments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from trainer.store import ObjectInfo
from trainer.store.directory import DirectoryStore


def nothing() -> None:
    pass


class MomentStore(DirectoryStore):
    """At its `at`-th request it calls `then`: before it does what it is asked, or after, so that the answer is lost.

    If `then` raises, this is the end of the process that asked: every later request ends so, too.
    """

    def __init__(self, root: Path, at: int = -1, then: Callable[[], None] = nothing, after: bool = False) -> None:
        super().__init__(root)
        self._count, self._at, self._then, self._after = 0, at, then, after
        self._ended: BaseException | None = None

    def _reach(self, after: bool) -> None:
        if self._ended:
            raise self._ended
        if self._count == self._at and after == self._after:
            try:
                self._then()
            except BaseException as error:
                self._ended = error
                raise

    def _ask(self, ask: Callable[[], Any]) -> Any:
        self._count += 1
        self._reach(after=False)
        answer = ask()
        self._reach(after=True)
        return answer

    def get(self, key: str) -> bytes:
        return self._ask(lambda: super(MomentStore, self).get(key))

    def info(self, key: str) -> ObjectInfo:
        return self._ask(lambda: super(MomentStore, self).info(key))

    def put(self, key: str, body: bytes | BinaryIO) -> str:
        return self._ask(lambda: super(MomentStore, self).put(key, body))

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        return iter(self._ask(lambda: [*super(MomentStore, self).list(prefix, after)]))
