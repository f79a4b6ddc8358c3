"""What a machine has read of a folder before: the hashes that are still true, and in words what differs now."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from trainer.data.making.revision.hashes import open_folder
from trainer.data.making.revision.ledger import (
    FOLDERS,
    HASH_BYTES,
    UNCHOSEN,
    Digest,
    FileFacts,
    Rows,
    load_ledger,
    look,
    this_machine,
)
from trainer.text import show_name

PATHS_NAMED = 3  # files in a message
_NOTHING = Rows([], np.empty((0, 5), np.int64), np.empty(0, np.bool_), np.empty((0, HASH_BYTES), np.uint8))


@dataclass(frozen=True)
class Sums:
    """Digests of the files of a ledger: those that are used, and the others."""

    used: Digest = field(default_factory=Digest)
    unused: Digest = field(default_factory=Digest)

    def add(self, group: str, rows: Rows) -> None:
        if group != FOLDERS:
            (self.unused if group == UNCHOSEN else self.used).add(group, rows)

    @property
    def text(self) -> str:
        return f"{self.used.hex()} {self.unused.hex()}"


def sums_of(groups: Iterable[tuple[str, Rows]]) -> Sums:
    sums = Sums()
    for group, rows in groups:
        sums.add(group, rows)
    return sums


def recall(file: Path, root: Path, rules: str) -> tuple[Digest, str] | None:
    """What the ledger says, and what was decided, if all is as it says. Few files are in memory at a time."""
    sums, said, decided = Sums(), "", ""
    with suppress(OSError, ValueError), open_folder(root) as descriptor:  # no ledger, or a damaged one: read all again
        here = this_machine(root, file.parent)
        for header, group, rows in load_ledger(file):
            as_said = group == UNCHOSEN or (
                rows.settled.all() and np.array_equal(look(descriptor, rows.paths), rows.facts)
            )
            if (header.machine, header.rules) != (here, rules) or not as_said:
                return None
            sums.add(group, rows)
            said, decided = header.digest if header.complete else "", header.decided
    return (sums.used, decided) if sums.used.files and sums.text == said else None


def load_rows(file: Path, *, unused: bool) -> Mapping[str, Rows]:
    parts: dict[str, list[Rows]] = {}
    for _, group, rows in load_ledger(file):
        if unused or group != UNCHOSEN:
            parts.setdefault(group, []).append(rows)
    return {group: _joined(some) for group, some in parts.items()}


def _joined(parts: Sequence[Rows]) -> Rows:
    facts, settled, hashes = (
        np.concatenate([getattr(part, field) for part in parts]) for field in ("facts", "settled", "hashes")
    )
    return Rows([path for part in parts for path in part.paths], facts, settled, hashes)


@dataclass(frozen=True)
class Before:
    """What a ledger says, whether it is still true or not."""

    rows_of: Mapping[str, Rows] = field(default_factory=dict)
    rules: str = ""
    complete: bool = False
    trusted: bool = False  # this machine and file system wrote it

    @classmethod
    def read(cls, file: Path, root: Path, *, trust: bool) -> Before:
        with suppress(OSError, ValueError):
            groups = load_rows(file, unused=True)
            header = next(load_ledger(file))[0]
            if sums_of(groups.items()).text == header.digest:  # else it is damaged
                trusted = trust and header.machine == this_machine(root, file.parent)
                return cls(groups, header.rules, header.complete, trusted)
        return cls()

    @cached_property
    def files(self) -> Rows:
        return _joined([rows for group, rows in self.rows_of.items() if group != FOLDERS] or [_NOTHING])

    @cached_property
    def numbers(self) -> Mapping[bytes, int]:
        return {path: number for number, path in enumerate(self.files.paths)}

    def rows(self, paths: list[bytes], facts: FileFacts) -> Rows:
        """These files, with the hashes of those that are as the ledger says. Only those are settled."""
        hashes, settled = np.zeros((len(paths), HASH_BYTES), np.uint8), np.zeros(len(paths), np.bool_)
        if self.trusted:
            was = np.array([self.numbers.get(path, -1) for path in paths], np.int64)
            there = np.flatnonzero(was >= 0)
            same = self.files.settled[was[there]] & (self.files.facts[was[there]] == facts[there]).all(axis=1)
            known = there[same]
            hashes[known], settled[known] = self.files.hashes[was[known]], True
        return Rows(paths, facts, settled, hashes)

    def unused(self, groups: Mapping[str, Rows], root: int) -> Rows:
        """What is known of other files, and still true: they need not be read when other choices use them again."""
        if not self.trusted:
            return _NOTHING
        used = {path for rows in groups.values() for path in rows.paths}
        number = [i for i, path in enumerate(self.files.paths) if path not in used and self.files.settled[i]]
        paths = [self.files.paths[i] for i in number]
        same = (look(root, paths) == self.files.facts[number]).all(axis=1)
        kept = np.array(number, np.int64)[same]
        facts, settled, hashes = self.files.facts[kept], self.files.settled[kept], self.files.hashes[kept]
        return Rows([self.files.paths[i] for i in kept], facts, settled, hashes)

    def compare(self, groups: Mapping[str, Rows], rules: str) -> str:
        """In words, what differs now: contents, not times. "" if nothing does, or if other files were chosen before.

        It says nothing either if not all was read before.
        """
        if not self.complete or self.rules != rules:
            return ""
        left = {path for group, rows in self.rows_of.items() if group not in (FOLDERS, UNCHOSEN) for path in rows.paths}
        other, new = [], []
        for group, rows in groups.items():
            for path, found in zip(rows.paths, rows.hashes, strict=True) if group != FOLDERS else ():
                if path not in left:
                    new.append(path)
                elif not np.array_equal(self.files.hashes[self.numbers[path]], found):
                    other.append(path)
                left.discard(path)
        parts = [_counted(other, "changed"), _counted(new, "new"), _counted(sorted(left), "gone")]
        return ", ".join(part for part in parts if part)


def _counted(paths: Sequence[bytes], what: str) -> str:
    if not paths:
        return ""
    more = ", …" if len(paths) > PATHS_NAMED else ""
    return f"{len(paths):,} {what} ({', '.join(show_name(os.fsdecode(path)) for path in paths[:PATHS_NAMED])}{more})"
