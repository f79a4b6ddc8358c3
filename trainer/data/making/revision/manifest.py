"""What a source consists of: each file that is used, with its size and the hash of its content, and one digest of all.

What is known of a folder is kept in a ledger, so that an unchanged folder is not read again. Which files are used is
decided in `sources`.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from trainer.data.format import Origin
from trainer.data.making.layout import hidden
from trainer.data.making.revision.hashes import WRITTEN, Reader, changed, open_folder, what_changed
from trainer.data.making.revision.ledger import (
    FOLDERS,
    HASH_BYTES,
    UNCHOSEN,
    Digest,
    FileFacts,
    Header,
    Rows,
    are_settled,
    look,
    this_machine,
    write_ledger,
)
from trainer.data.making.revision.memory import Before, load_rows, recall, sums_of
from trainer.data.progress import ProgressListener
from trainer.text import say

Files = Mapping[str, Sequence[str]]  # split: the paths of its files below the root, in order


@dataclass(frozen=True)
class Chosen:
    """Which files of a folder are used, and what else decides the content."""

    files: Files
    decided: str = ""
    read: Sequence[str] = ()  # files by which this was chosen


LEDGER_SECONDS = 60.0  # a process that is killed has read no more than this in vain
SOURCES = "sources"  # the folder of the ledgers, in the scratch folder


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
            odd = np.flatnonzero((now != rows.facts).any(axis=1)).tolist()
            for number in odd:
                if what := what_changed(rows.facts[number].tolist(), now[number].tolist()):
                    raise changed(self.data, rows.paths[number], what)
            for task, hashes in Reader(self.data, root, rows.paths, rows.facts).hash_files(odd, 0, None):
                for number in np.array(task)[(hashes != rows.hashes[task]).any(axis=1)]:
                    raise changed(self.data, rows.paths[number], WRITTEN)


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
    if file and not memory.verify and (recalled := recall(file, root, rules)):
        used = partial(load_rows, file, unused=False)
        return Known(data, root, _folder_origin(recalled[0]), recalled[1], True, used)
    begun = time.time_ns()
    chosen = choose()
    before = Before.read(file, root, trust=not memory.verify) if file else Before()
    groups: dict[str, Rows] = {}
    with open_folder(root) as descriptor:
        if whole:
            groups[FOLDERS] = _folders(root, descriptor, chosen.read, begun)
        for name, some in chosen.files.items():
            paths = [os.fsencode(path) for path in some]
            groups[name] = before.rows(paths, _facts_now(data, descriptor, paths))
        unused = before.unused(groups, descriptor)

        def store(complete: bool) -> None:
            if file:
                with suppress(OSError):  # the next call reads all again
                    sums = sums_of([*groups.items(), (UNCHOSEN, unused)]).text
                    header = Header(this_machine(root, file.parent), rules, chosen.decided, sums, complete)
                    write_ledger(file, header, groups | {UNCHOSEN: unused})

        read, complete, stored = 0, False, time.monotonic()
        try:
            for count in _read_missing(data, descriptor, groups, begun, workers, progress):
                read += count
                if time.monotonic() - stored > LEDGER_SECONDS:
                    store(complete=False)
                    stored = time.monotonic()
            complete = True
        finally:  # what was read before an error or Ctrl-C need not be read again
            store(complete)
    if told := before.compare(groups, rules):
        say(f"DATA={data} is not as it was when this machine read it last: {told}")
    origin = _folder_origin(sums_of(groups.items()).used)
    return Known(data, root, origin, chosen.decided, not read, lambda: groups)


def _read_missing(
    data: str, root: int, groups: Mapping[str, Rows], begun: int, workers: int, progress: ProgressListener | None
) -> Iterator[int]:
    """Read the files whose hashes are not known, and write these into `groups`. Yields how many, some at a time."""
    for group, rows in groups.items():
        todo = np.flatnonzero(~rows.settled).tolist() if group != FOLDERS else []
        for task, hashes in Reader(data, root, rows.paths, rows.facts).hash_files(todo, workers, progress):
            rows.hashes[task], rows.settled[task] = hashes, are_settled(rows.facts[task], begun)
            yield len(task)


def _folder_origin(digest: Digest) -> Origin:
    return Origin("folder", digest.hex(), digest.files, digest.bytes)


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
