"""What a source consists of: each file that is used, with its size and the hash of its content, and one digest of all.

What is known of a folder is kept in a ledger, so that an unchanged folder is not read again. Which files are used is
decided in `sources`.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from trainer.data.format import Origin
from trainer.data.making.layout import hidden
from trainer.data.making.revision.hashes import Reader, changed, open_folder, what_changed
from trainer.data.making.revision.ledger import (
    FOLDERS,
    HASH_BYTES,
    Digest,
    FileFacts,
    Header,
    Rows,
    are_settled,
    load_ledger,
    look,
    this_machine,
    write_ledger,
)
from trainer.data.progress import ProgressListener
from trainer.text import say, show_name

Files = Mapping[str, Sequence[str]]  # split: the paths of its files below the root, in order


@dataclass(frozen=True)
class Chosen:
    """Which files of a folder are used, and what else decides the content."""

    files: Files
    decided: str = ""
    read: Sequence[str] = ()  # files by which this was chosen


PATHS_NAMED = 3  # files in a message
SOURCES = "sources"  # the folder of the ledgers, in the scratch folder
_NOTHING = Rows([], np.empty((0, 5), np.int64), np.empty(0, np.bool_), np.empty((0, HASH_BYTES), np.uint8))


@dataclass(frozen=True)
class SourceMemory:
    """How far this machine may rely on what it remembers of a source."""

    folder: Path | None = None  # where the ledgers are; without one nothing is remembered
    verify: bool = False  # read every file again

    def ledger(self, root: Path) -> Path | None:
        if self.folder is None:
            return None
        return self.folder / f"{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:24]}.arrow"


@dataclass(frozen=True)
class Known:
    """A folder whose content is known."""

    data: str  # for messages
    root: Path
    origin: Origin
    decided: str  # what the files do not say of the content
    remembered: bool  # no file was read: all are as they were when this machine read them
    groups: Callable[[], Mapping[str, Rows]]

    def watch(self) -> Watch:
        return Watch(self.data, self.root, self.groups())


@dataclass(frozen=True)
class Watch:
    """Sees whether files have changed since they were hashed."""

    data: str
    root: Path
    groups: Mapping[str, Rows]

    def check(self, split: str, images: range, total: int) -> None:
        """Look at the files of these images of a split, which has `total` images. UserError names one that changed."""
        rows = self.groups[split]
        self._check(rows[images.start : images.stop] if len(rows.paths) == total else rows)

    def check_files(self, files: Files) -> None:
        """Whether these are the files that were hashed. UserError names one that came or went since."""
        for group, paths in files.items():
            hashed = self.groups[group].paths if group in self.groups else []
            if other := set(hashed) ^ set(map(os.fsencode, paths)):
                path = min(other)
                raise changed(self.data, path, "it is gone" if path in hashed else "it is new")

    def check_all(self) -> None:
        for group, rows in self.groups.items():
            if group != FOLDERS:
                self._check(rows)

    def _check(self, rows: Rows) -> None:
        with open_folder(self.root) as root:
            now = look(root, rows.paths)
        for number in np.flatnonzero((now != rows.facts).any(axis=1))[:1]:
            what = what_changed(rows.facts[number].tolist(), now[number].tolist())
            raise changed(self.data, rows.paths[number], what)


def know_folder(
    data: str,
    root: Path,
    choose: Callable[[], Chosen],
    memory: SourceMemory,
    *,
    rules: str = "",
    whole: bool = True,
    workers: int = 0,
    progress: ProgressListener | None = None,
) -> Known:
    """Find out the content of the files below `root` that `choose` names. What differs from before is said.

    If all files, and all folders in which more could appear, are as this machine remembers them, none is read or
    listed. It looks anew if the `rules` by which files are chosen are others. If not `whole`, files that are not used
    may come and go unseen. Raises UserError and OSError.
    """
    file = memory.ledger(root)
    if file and not memory.verify and (recalled := _recall(file, root, rules)):
        return Known(data, root, _folder_origin(recalled[0]), recalled[1], True, partial(_load_rows, file))
    begun = time.time_ns()
    chosen = choose()
    listed = {name: [os.fsencode(path) for path in some] for name, some in chosen.files.items()}
    before = _Before.read(file, root) if file else _Before()
    groups: dict[str, Rows] = {}
    digest = Digest()
    with open_folder(root) as descriptor:
        if whole:
            groups[FOLDERS] = _folders(root, descriptor, chosen.read, begun)
        try:
            for name, paths in listed.items():
                facts = _facts_now(data, descriptor, paths)
                groups[name] = rows = before.rows(paths, facts, trust=not memory.verify)
                todo, settled = np.flatnonzero(~rows.settled), are_settled(facts, begun)
                for task, hashes in Reader(data, descriptor, paths, facts).hash_files(todo.tolist(), workers, progress):
                    rows.hashes[task], rows.settled[task] = hashes, settled[task]
                digest.add(name, rows)
        finally:  # what was read before an error or Ctrl-C need not be read again
            if file:
                complete = digest.files == sum(map(len, listed.values()))
                header = Header(this_machine(root), rules, chosen.decided, _digest(groups).hex(), complete)
                with suppress(OSError):  # the next call reads all again
                    write_ledger(file, header, groups)
    if told := before.compare(groups):
        say(f"DATA={data} is not as it was when this machine read it last: {told}")
    return Known(data, root, _folder_origin(digest), chosen.decided, False, lambda: groups)


def _digest(groups: Mapping[str, Rows]) -> Digest:
    digest = Digest()
    for group, rows in groups.items():
        if group != FOLDERS:
            digest.add(group, rows)
    return digest


def _folder_origin(digest: Digest) -> Origin:
    return Origin("folder", digest.hex(), digest.files, digest.bytes)


def _recall(file: Path, root: Path, rules: str) -> tuple[Digest, str] | None:
    """What the ledger says, and what was decided, if all is as it says. Few files are in memory at a time."""
    digest, said, decided = Digest(), "", ""
    with suppress(OSError, ValueError), open_folder(root) as descriptor:  # no ledger, or a damaged one: read all again
        here = this_machine(root)
        for header, group, rows in load_ledger(file):
            as_said = rows.settled.all() and np.array_equal(look(descriptor, rows.paths), rows.facts)
            if (header.machine, header.rules) != (here, rules) or not as_said:
                return None
            if group != FOLDERS:
                digest.add(group, rows)
            said, decided = header.digest if header.complete else "", header.decided
    return (digest, decided) if digest.files and digest.hex() == said else None


def _load_rows(file: Path) -> Mapping[str, Rows]:
    parts: dict[str, list[Rows]] = {}
    for _, group, rows in load_ledger(file):
        parts.setdefault(group, []).append(rows)
    return {group: _joined(some) for group, some in parts.items()}


def _joined(parts: Sequence[Rows]) -> Rows:
    facts, settled, hashes = (
        np.concatenate([getattr(part, field) for part in parts]) for field in ("facts", "settled", "hashes")
    )
    return Rows([path for part in parts for path in part.paths], facts, settled, hashes)


def _facts_now(data: str, root: int, paths: Sequence[bytes]) -> FileFacts:
    facts = look(root, paths)
    for number in np.flatnonzero(facts[:, 0] < 0)[:1]:
        raise changed(data, paths[number], "it is gone")
    return facts


def _folders(root: Path, descriptor: int, read: Sequence[str], begun: int) -> Rows:
    """The folders in which more files could appear, all but hidden ones; and files that were read to choose."""
    level = [b"."]
    found = [*level, *map(os.fsencode, read)]
    while level := [path for parent in level for path in _folders_in(root, parent)]:
        found = found + level
    facts = look(descriptor, found)
    hashes = np.zeros((len(found), HASH_BYTES), np.uint8)
    return Rows(found, facts, are_settled(facts, begun), hashes)


def _folders_in(root: Path, parent: bytes) -> list[bytes]:
    with suppress(PermissionError), os.scandir(os.path.join(os.fsencode(root), parent)) as entries:  # noqa: PTH118
        return sorted(
            parent + b"/" + entry.name for entry in entries if entry.is_dir() and not hidden(os.fsdecode(entry.name))
        )
    return []


@dataclass(frozen=True)
class _Before:
    """What a ledger says, whether it is still true or not."""

    rows_of: Mapping[str, Rows] = field(default_factory=dict)
    complete: bool = False
    trusted: bool = False  # this machine and file system wrote it

    @classmethod
    def read(cls, file: Path, root: Path) -> _Before:
        with suppress(OSError, ValueError):
            groups = _load_rows(file)
            header = next(load_ledger(file))[0]
            if _digest(groups).hex() == header.digest:  # else it is damaged
                return cls(groups, header.complete, header.machine == this_machine(root))
        return cls()

    @cached_property
    def files(self) -> Rows:
        return _joined([rows for group, rows in self.rows_of.items() if group != FOLDERS] or [_NOTHING])

    @cached_property
    def numbers(self) -> Mapping[bytes, int]:
        return {path: number for number, path in enumerate(self.files.paths)}

    def rows(self, paths: list[bytes], facts: FileFacts, *, trust: bool) -> Rows:
        """These files, with the hashes of those that are as the ledger says. Only those are settled."""
        hashes, settled = np.zeros((len(paths), HASH_BYTES), np.uint8), np.zeros(len(paths), np.bool_)
        if trust and self.trusted:
            was = np.array([self.numbers.get(path, -1) for path in paths], np.int64)
            there = np.flatnonzero(was >= 0)
            same = self.files.settled[was[there]] & (self.files.facts[was[there]] == facts[there]).all(axis=1)
            known = there[same]
            hashes[known], settled[known] = self.files.hashes[was[known]], True
        return Rows(paths, facts, settled, hashes)

    def compare(self, groups: Mapping[str, Rows]) -> str:
        """In words, what differs now: contents, not times. "" if nothing does, or if not all was read before."""
        if not self.complete:
            return ""
        left, other, new = dict(self.numbers), [], []
        for group, rows in groups.items():
            for path, found in zip(rows.paths, rows.hashes, strict=True) if group != FOLDERS else ():
                number = left.pop(path, -1)
                if number < 0:
                    new.append(path)
                elif not np.array_equal(self.files.hashes[number], found):
                    other.append(path)
        parts = [_counted(other, "changed"), _counted(new, "new"), _counted(sorted(left), "gone")]
        return ", ".join(part for part in parts if part)


def _counted(paths: Sequence[bytes], what: str) -> str:
    if not paths:
        return ""
    more = ", …" if len(paths) > PATHS_NAMED else ""
    return f"{len(paths):,} {what} ({', '.join(show_name(os.fsdecode(path)) for path in paths[:PATHS_NAMED])}{more})"
