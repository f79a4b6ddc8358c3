"""Reads files to know them by their content: SHA-256, in threads, and no file that changes meanwhile."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainer.contract import UserError
from trainer.data.making.revision.ledger import FACTS, HASH_BYTES, FileFacts, facts_of
from trainer.data.progress import ProgressListener, Track
from trainer.text import show_name

HASH_PIECE_BYTES = 1 << 20
TASK_FILES, TASK_BYTES = 64, 8 << 20  # what a thread reads at a time
READINGS = 3  # of a file whose ctime changes meanwhile
TOLD_FROM = 1 << 28  # bytes: less is read in a second

Hashes = npt.NDArray[np.uint8]  # (files, 32)


@contextmanager
def open_folder(root: Path) -> Iterator[int]:
    """A descriptor of the folder: files below it are found without walking its path again."""
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def what_changed(before: Sequence[int], now: Sequence[int]) -> str:
    """What happened to a file with these facts, or "" if nothing did, but perhaps to its ctime.

    A chmod or a new hard link changes the ctime alone; so does who writes and sets the old time. Only reading tells.
    """
    if now[0] < 0:
        return "it is gone"
    if before[0] != now[0]:
        return f"it had {before[0]:,} bytes and has {now[0]:,}"
    if tuple(before)[3:] != tuple(now)[3:]:
        return "another file took its place"
    return WRITTEN if before[1] != now[1] else ""


WRITTEN = "it was written again"


def changed(data: str, path: bytes, what: str) -> UserError:
    return UserError(
        f"DATA={data}: {show_name(os.fsdecode(path))} changed while the data was read ({what}): prepared data must be "
        "of one moment. Wait until nothing writes there and run the same command again"
    )


@dataclass(frozen=True)
class Reader:
    """Reads the files of one folder. `facts` are those of `paths`, from before; a new ctime is written into them."""

    data: str  # for messages
    root: int
    paths: Sequence[bytes]
    facts: FileFacts

    def hash_files(
        self, numbers: Iterable[int], workers: int, progress: ProgressListener | None
    ) -> Iterator[tuple[list[int], Hashes]]:
        """The hashes of the files with these numbers, some at a time. `progress` is told of bytes.

        Raises UserError if a file is not as its facts say or may not be read, OSError for a fault of the disk.
        """
        sizes: list[int] = self.facts[:, 0].tolist()
        tasks = list(_tasks(numbers, sizes))
        total = sum(sizes[number] for task in tasks for number in task)
        pool = ThreadPoolExecutor(workers or os.cpu_count() or 1, "hash")
        told: Callable[[int], None] = lambda count: None  # noqa: E731
        with ExitStack() as stack:
            stack.callback(pool.shutdown, wait=True, cancel_futures=True)  # also if nobody wants the rest
            if total >= TOLD_FROM:
                told = stack.enter_context(
                    Track(total, "bytes", f"reading {self.data} to know its content", progress)
                ).add
            for task, hashes in zip(tasks, pool.map(self._hash_task, tasks), strict=True):
                yield task, hashes
                told(sum(sizes[number] for number in task))

    def _hash_task(self, numbers: Sequence[int]) -> Hashes:
        buffer = memoryview(bytearray(HASH_PIECE_BYTES))
        return np.frombuffer(b"".join(self._hash(number, buffer) for number in numbers), np.uint8).reshape(
            -1, HASH_BYTES
        )

    def _hash(self, number: int, buffer: memoryview) -> bytes:
        path, before = self.paths[number], self.facts[number].tolist()
        home, digest = os.fstat(self.root).st_dev, hashlib.sha256()
        begun: tuple[int, ...] = ()
        try:
            file = os.open(path, os.O_RDONLY, dir_fd=self.root)
            try:
                found = facts_of(os.fstat(file), home)
                for _ in range(READINGS):
                    begun, digest = found, hashlib.sha256()
                    os.lseek(file, 0, os.SEEK_SET)
                    left = -1 if what_changed(before, begun) else before[0]
                    while left >= 0 and (count := os.readv(file, [buffer])):
                        digest.update(buffer[:count])
                        left -= count  # less than nothing: it grows
                    found = facts_of(os.fstat(file), home)
                    if found == begun:
                        break
            finally:
                os.close(file)
        except FileNotFoundError:
            found = (-1,) * len(FACTS)
        except PermissionError as error:
            raise UserError(
                f"DATA={self.data}: {show_name(os.fsdecode(path))} cannot be read ({error.strerror}): allow this user "
                "to read it, or remove it"
            ) from error
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror}, of DATA={self.data}", os.fsdecode(path)) from error
        if what := what_changed(before, found) or (WRITTEN if found != begun else ""):
            raise changed(self.data, path, what)
        self.facts[number] = found
        return digest.digest()


def _tasks(numbers: Iterable[int], sizes: Sequence[int]) -> Iterator[list[int]]:
    task: list[int] = []
    for number in numbers:
        task.append(number)
        if len(task) == TASK_FILES or sum(sizes[one] for one in task) >= TASK_BYTES:
            yield task
            task = []
    if task:
        yield task
