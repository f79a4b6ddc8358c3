"""Finds out which shards of a folder on this machine are whole. Each is read once and compared with the index.

The result is remembered until the file changes. Nothing is fetched or mended here.
"""

from __future__ import annotations

import fcntl
import json
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from trainer.contract import RunEnv, UserError
from trainer.data.format import INDEX, Index, Shard, ShardHash
from trainer.data.progress import Track
from trainer.text import say
from trainer.values import as_object, parse_object

PIECE_BYTES = 1 << 20  # what a thread reads at a time: small enough to stay in the processor's cache
TURN_SECONDS = 0.1
SILENT_WAITS = 10  # before a message: the processes of one machine often wait a moment for each other
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
MISSING = "is missing"


class Verified:
    """The files that this machine has read and found whole. They are listed in a small JSON file.

    A file that has changed since does not count. After a restart of the machine no file counts: the last writes may be
    lost although sizes and times are as before. If the system does not tell its restarts, nothing is remembered.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock, self._boot = path, threading.Lock(), _boot_id()
        self._files: dict[str, list[int | str]] = {}
        try:
            found = parse_object(path.read_bytes())
            if self._boot and found.get("boot") == self._boot:
                self._files = as_object("files", found.get("files"))
        except (FileNotFoundError, ValueError):
            pass  # none yet, or torn by a crash of the machine: everything is read again

    def __contains__(self, item: tuple[Path, Shard]) -> bool:
        path, shard = item
        return self._files.get(str(path)) == _entry(path.stat(), shard)

    def add(self, path: Path, shard: Shard, stat: os.stat_result | None = None) -> None:
        """Remember that the file was whole when it had this `stat`; without one, now."""
        if not self._boot:
            return
        with self._lock:
            self._files[str(path)] = _entry(stat or path.stat(), shard)
            part = self._path.with_name(f"{self._path.name}.part")
            part.write_text(json.dumps({"boot": self._boot, "files": self._files}, indent=1) + "\n")
            part.replace(self._path)


def _entry(stat: os.stat_result, shard: Shard) -> list[int | str]:
    return [stat.st_size, stat.st_mtime_ns, shard.checksum]


def _boot_id() -> str:
    """The id of this machine since its last restart; "" where the system has none, as in some containers."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


def make_folder(folder: Path) -> None:
    """Make the scratch folder or one in it. UserError if something is in its place, or if it may not be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be made or used ({error.strerror}): the scratch folder and what is in it must be folders "
            "that this user can write to, on a disk with room for the data; remove what is in its place, or name "
            f"another scratch folder, {RunEnv.variable('scratch_dir')}=…"
        ) from error


@contextmanager
def open_verified(scratch: Path, index: Index) -> Iterator[Verified]:
    """What is known of this data on this machine, for one process at a time. The others wait, and then find it done.

    Raises UserError if `scratch` allows no such folder or no lock: without a lock, two would write the same files.
    """
    folder = scratch / "verified"
    make_folder(folder)
    with (folder / f"{index.name}-{index.version}.lock").open("ab") as lock:
        waited = 0
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if waited == SILENT_WAITS:
                    say(f"waiting for another process that fetches or verifies {index.name} {index.version}")
                waited += 1
                time.sleep(TURN_SECONDS)
            except OSError as error:
                raise UserError(
                    f"scratch folder {scratch} cannot be locked ({error.strerror}): it must be on a file system with "
                    "locks, by which the processes that fetch or verify the same data take turns; name a folder on a "
                    f"local disk, {RunEnv.variable('scratch_dir')}=…"
                ) from error
        yield Verified(folder / f"{index.name}-{index.version}.json")


def find_faults(
    folder: Path, shards: Sequence[Shard], verified: Verified, workers: int, progress: Callable[[int], None] | None
) -> dict[Shard, str]:
    """The shards that are not whole, and what is wrong with each. Files that are not known yet are read."""
    faults, unknown = dict[Shard, str](), list[Shard]()
    for shard in shards:
        path = folder / shard.file
        if not path.is_file():
            faults[shard] = MISSING
        elif (found := path.stat().st_size) != shard.bytes:
            faults[shard] = f"has {found} bytes, {INDEX} says {shard.bytes}"
        elif (path, shard) not in verified:
            unknown.append(shard)
    if not unknown:
        return faults

    with Track(sum(shard.bytes for shard in unknown), "bytes", f"verifying {folder}", progress) as track:

        def verify(shard: Shard, stop: threading.Event) -> None:
            path = folder / shard.file
            try:
                with path.open("rb", buffering=0) as file:
                    stat = os.fstat(file.fileno())
                    _, found = read_hash(file, shard, stat.st_size, stop, track.add)
            except OSError as error:  # the disk, or the permissions
                faults[shard] = f"cannot be read ({error.strerror})"
                return
            if found.value == shard.checksum:
                verified.add(path, shard, stat)
            elif not stop.is_set():
                faults[shard] = f"has checksum {found.value}, {INDEX} says {shard.checksum}"

        in_parallel(verify, unknown, workers)
    return faults


def read_hash(
    file: FileIO, shard: Shard, size: int, stop: threading.Event, count: Callable[[int], None]
) -> tuple[int, ShardHash]:
    """Read up to `size` bytes of a shard; returns how many there were, and their checksum. `count` is told of each
    piece."""
    buffer, done, found = memoryview(bytearray(PIECE_BYTES)), 0, ShardHash(shard)
    while done < size and not stop.is_set() and (got := file.readinto(buffer[: size - done])):
        found.update(buffer[:got])
        done += got
        count(got)
    return done, found


def in_parallel(task: Callable[[Shard, threading.Event], None], shards: Sequence[Shard], threads: int) -> None:
    """Do the task with every shard. The first error, or an interruption, sets the event and is raised at once.

    A thread may then still wait seconds for an answer of S3. Nothing waits for the threads, not even Python's exit.
    Until they see the event they write only bytes that belong to the shard.
    """
    todo, ended, stop = queue.SimpleQueue[Shard](), queue.SimpleQueue[BaseException | None](), threading.Event()
    for shard in shards:
        todo.put(shard)

    def work() -> None:
        try:
            while not stop.is_set():
                task(todo.get_nowait(), stop)
                ended.put(None)
        except queue.Empty:
            pass
        except BaseException as error:  # noqa: BLE001  # raised below
            ended.put(error)

    for _ in range(min(threads, len(shards))):
        threading.Thread(target=work, name="stage", daemon=True).start()
    try:
        for _ in shards:
            if error := ended.get():
                raise error
    finally:
        stop.set()
