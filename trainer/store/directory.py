"""The store in a folder: files, one lock, atomic renames. Standard library only."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from trainer.contract import RESERVED, check_key
from trainer.store import (
    READ_BYTES,
    ConflictError,
    NotFoundError,
    ObjectInfo,
    StoreError,
    check_prefix,
    check_range,
    check_size,
    naming_the_fix,
)
from trainer.store.probe import probe_conditions, probe_store

if TYPE_CHECKING:
    from trainer.store.checksum import Checksums

_LOCK = f"{RESERVED}lock"


class DirectoryStore:
    """A folder. A key is the path of a file in it. One lock file at the top lets one writer in at a time.

    A write makes a complete temporary file, flushes it to disk, and renames (or links) it into place under the lock.
    So comparing an etag and writing are one step. A missing folder is a fault, as a missing bucket is.
    """

    def __init__(self, root: Path) -> None:
        self.uri = str(root)
        self._root = root

    def describe(self, key: str) -> str:
        return str(self._root / check_key(key))

    def get(self, key: str) -> bytes:
        return self.get_with_etag(key)[0]

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        with self._errors("get", key, reading=True), self._path(key).open("rb") as file:
            return file.read(), _file_etag(os.fstat(file.fileno()))

    def info(self, key: str) -> ObjectInfo:
        with self._errors("head", key, reading=True), self._path(key).open("rb") as file:
            stat = os.fstat(file.fileno())
            return ObjectInfo(key, stat.st_size, _file_etag(stat))

    def read_range(self, key: str, start: int, size: int) -> bytes:
        check_range(start, size)
        with self._errors("read", key, reading=True), self._path(key).open("rb") as file:
            file.seek(start)
            data = file.read(size)
        if len(data) != size:
            raise StoreError(f"read {self.describe(key)}: it ends before byte {start + size}", "InvalidRange")
        return data

    def stream(self, key: str, start: int, size: int, buffer: memoryview) -> Iterator[memoryview]:
        check_range(start, size)
        with self._errors("read", key, reading=True):
            file = self._path(key).open("rb", buffering=0)
        with file:
            file.seek(start)
            while size:
                with self._errors("read", key, reading=True):
                    count = file.readinto(buffer[:size])
                if not count:
                    raise StoreError(f"read {self.describe(key)}: it ends {size} bytes too early", "InvalidRange")
                size -= count
                yield buffer[:count]

    def read_into(self, key: str, buffer: memoryview, start: int | None = None) -> None:
        view = buffer.cast("B")
        if start is not None:
            check_range(start, len(view))
        with self._errors("read", key, reading=True), self._path(key).open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if start is not None:
                file.seek(start)
                size = max(0, min(size - start, len(view)))
            done = 0
            while size == len(view) and done < size and (count := file.readinto(view[done:])):
                done += count
        if size != len(view) or done != size:
            raise StoreError(f"read {self.describe(key)}: it has {size} bytes there, not {len(view)}", "InvalidRange")

    def put(self, key: str, body: bytes | BinaryIO) -> str:
        with self._writing("put", key, body) as (temporary, path):
            temporary.replace(path)
            return _file_etag(path.stat())

    def put_large(self, key: str, body: memoryview, checksums: Checksums) -> None:
        view = check_size(body, checksums)
        if not checksums.has_crcs_of(view):
            raise StoreError(f"put {self.describe(key)}: the body is not what its checksums are of", "BadDigest")
        with self._writing("put", key, view) as (temporary, path):
            temporary.replace(path)

    def create(self, key: str, body: bytes) -> str:
        with self._writing("create", key, body) as (temporary, path):
            try:
                _place_new(temporary, path)
            except FileExistsError as error:
                raise ConflictError(f"create {self.describe(key)}: it exists already", "EEXIST") from error
            return _file_etag(path.stat())

    def replace(self, key: str, body: bytes, etag: str) -> str:
        with self._writing("replace", key, body) as (temporary, path):
            try:  # opened, since a network folder may answer a look at a path from a cache
                with path.open("rb") as file:
                    current = _file_etag(os.fstat(file.fileno()))
            except (FileNotFoundError, IsADirectoryError):
                current = "missing"
            if current != etag:
                raise ConflictError(f"replace {self.describe(key)}: it is {current}, not {etag}", "PreconditionFailed")
            temporary.replace(path)
            return _file_etag(path.stat())

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        start = self._root / check_prefix(prefix).rpartition("/")[0]
        with self._errors("list", prefix, reading=False):
            self._root.stat()  # a missing store is no empty one
            found = [info for info in self._walk(start) if info.key.startswith(prefix) and info.key > after]
        yield from sorted(found, key=lambda info: info.key)

    def folders(self, folder: str) -> Sequence[str]:
        with self._errors("list", folder, reading=False):
            self._root.stat()  # a missing store is no empty one
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                there = (self._root / check_prefix(folder)).iterdir()
                return sorted(path.name for path in there if path.is_dir() and not path.name.startswith(RESERVED))
        return []

    def retire(self, key: str) -> None:
        path = self._path(key)
        with self._errors("retire", key, reading=False), self._lock(), contextlib.suppress(NotADirectoryError):
            path.unlink(missing_ok=True)

    def abort_uploads(self, prefix: str) -> int:
        start, count = self._root / check_prefix(prefix).rpartition("/")[0], 0
        with self._errors("abort", prefix, reading=False):
            self._root.stat()  # a missing store is no empty one
            for folder, _, names in os.walk(start):
                if f"{folder}/".startswith(f"{self._root}/{prefix}"):
                    for path in (Path(folder) / name for name in names if name.startswith(RESERVED) and name != _LOCK):
                        with contextlib.suppress(FileNotFoundError, BlockingIOError), path.open("r+b") as file:
                            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its writer is alive
                            path.unlink()
                            count += 1
        return count

    @property
    def keeps_all(self) -> bool:
        return False

    def free_bytes(self) -> int | None:
        try:
            disk = os.statvfs(self._root)
        except OSError:
            return None
        return disk.f_bavail * disk.f_frsize if disk.f_blocks else None  # some mounts answer with nothing but zeros

    def probe(self, key: str, *, for_checkpoints: bool = False, creates: bool = False) -> tuple[str, ...]:
        with naming_the_fix(f"the store {self.uri}"):
            probe_store(self, key, creates=creates)
            if for_checkpoints:
                probe_conditions(self, key)
        return ()

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def _walk(self, folder: Path) -> Iterator[ObjectInfo]:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # no such folder, or retired meanwhile
            for path in folder.iterdir():
                if path.name.startswith(RESERVED):
                    continue
                if path.is_dir():
                    yield from self._walk(path)
                    continue
                with contextlib.suppress(FileNotFoundError):
                    stat = path.stat()
                    yield ObjectInfo(path.relative_to(self._root).as_posix(), stat.st_size, _file_etag(stat))

    @contextlib.contextmanager
    def _writing(self, operation: str, key: str, body: bytes | memoryview | BinaryIO) -> Iterator[tuple[Path, Path]]:
        """Write a temporary file. The caller then moves it to its destination, under the lock."""
        path = self._path(key)
        temporary = path.with_name(f"{RESERVED}{uuid.uuid4().hex}")
        with self._errors(operation, key, reading=False):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("xb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX)  # tells abort_uploads that the writer is alive
                    if isinstance(body, bytes | memoryview):
                        file.write(body)
                    else:
                        shutil.copyfileobj(body, file, READ_BYTES)
                    file.flush()
                    # For _file_etag: Linux before 6.13 would give writes within 4 ms the same time.
                    now = time.time_ns()
                    os.utime(file.fileno(), ns=(now, now))
                    os.fsync(file.fileno())
                    with self._lock():
                        yield temporary, path
                _sync_folder(path.parent)
            finally:
                temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        with (self._root / _LOCK).open("ab") as file:  # a new opening, so that threads exclude each other, too
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def _errors(self, operation: str, key: str, *, reading: bool) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            message = f"{operation} {self._root / key}: {error.strerror or error}"
            code = errno.errorcode.get(error.errno or 0, "")
            if reading and code in ("ENOENT", "ENOTDIR", "EISDIR") and self._root.is_dir():
                raise NotFoundError(message, code) from error
            raise StoreError(message, code) from error


def _place_new(temporary: Path, path: Path) -> None:
    """Give a complete file its name, or raise FileExistsError.

    A hard link does that in one step even where the lock does not hold. Not every file system has them: exFAT and many
    mounts do not. There the lock alone keeps other writers out between the look and the rename.
    """
    try:
        path.hardlink_to(temporary)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK):
            raise
        try:  # opened, for the reason that `replace` has
            path.open("rb").close()
        except FileNotFoundError:
            temporary.replace(path)
        else:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error


def _file_etag(stat: os.stat_result) -> str:
    """Inode, size and time in nanoseconds. They identify the content, since files are never changed in place."""
    return f"{stat.st_ino:x}-{stat.st_size:x}-{stat.st_mtime_ns:x}"


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some mounts flush no folders
            raise
    finally:
        os.close(descriptor)
