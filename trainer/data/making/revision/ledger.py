"""What a machine remembers of the files of a source: size, times, inode and hash, so that it need not read them again.

A ledger is one Arrow file for one folder. It is believed only on the machine and the file system that made it. What a
change of the files means is decided in `manifest`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

FORMAT = 2
BATCH = 16_384  # files: few are in memory at a time
FACTS = ("bytes", "mtime_ns", "ctime_ns", "inode", "device")  # the device is 0 where it is that of the root
HASH_BYTES = 32  # SHA-256
SETTLED_NS = 2 * 10**9  # the coarsest clock of a file system: a file that was changed later may change again unseen
FOLDERS = ""  # the group of folders and of what else decides which files are used; the others are splits
UNCHOSEN = "unused"  # the group of files that only other choices use
LEFT_SECONDS = 3600.0  # a part of a ledger that is older belongs to nobody any more
MACHINE_ID = Path("/etc/machine-id")
_POSITIVE = 2**63 - 1
_NOT_THERE = (-1,) * len(FACTS)
_NUMBERS = tuple((fact, pa.int64()) for fact in FACTS)
_SCHEMA = pa.schema(
    [("group", pa.uint8()), ("path", pa.binary()), *_NUMBERS, ("settled", pa.uint8()), ("hash", pa.binary(HASH_BYTES))]
)

FileFacts = npt.NDArray[np.int64]  # (files, 5), in the order of FACTS; -1 of what is not there


@dataclass(frozen=True)
class Rows:
    """Files of one group. Paths are bytes, since a name may be any; they are relative to the root."""

    paths: list[bytes]
    facts: FileFacts
    settled: npt.NDArray[np.bool_]  # (files,): a later change cannot leave the same facts
    hashes: npt.NDArray[np.uint8]  # (files, 32)

    def __getitem__(self, part: slice) -> Rows:
        return Rows(self.paths[part], self.facts[part], self.settled[part], self.hashes[part])


def look(root: int, paths: Iterable[bytes]) -> FileFacts:
    """The facts of files below an open folder. Links are followed. Raises OSError for all but a missing file."""
    flat: list[int] = []  # one list of numbers takes a third of the time that tuples or columns take
    stat, home = os.stat, os.fstat(root).st_dev
    for path in paths:
        try:
            found = stat(path, dir_fd=root)
        except (FileNotFoundError, NotADirectoryError):
            flat += _NOT_THERE
        else:  # as facts_of, but a call would cost a tenth
            flat += (
                found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino & _POSITIVE,
                0 if found.st_dev == home else found.st_dev & _POSITIVE,
            )  # fmt: skip
    return np.frombuffer(array("q", flat), np.int64).reshape(-1, len(FACTS))


def facts_of(found: os.stat_result, home: int) -> tuple[int, ...]:
    """In the order of FACTS. An inode may have 64 bits; 63 of them do.

    `home` is the device of the root. The number of a device may be another one after each mount, so it only says
    whether a file lies on the root's file system.
    """
    device = 0 if found.st_dev == home else found.st_dev & _POSITIVE
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino & _POSITIVE, device


def are_settled(facts: FileFacts, now_ns: int) -> npt.NDArray[np.bool_]:
    """Which files have not changed in the last seconds before `now_ns`. A time in the future says nothing."""
    written, changed = facts[:, 1], facts[:, 2]
    limit = now_ns - SETTLED_NS
    settled: npt.NDArray[np.bool_] = (changed < limit) & ((written < limit) | (written > now_ns))
    return settled


def this_machine(root: Path, ledgers: Path) -> str:
    """This machine and the file system of `root`. It stays the same when the machine or a container starts again.

    A container has no machine-id, and another host name each time. There the folder `ledgers` itself is the machine: an
    empty file in it has an inode and a ctime that no copy of the folder has. Raises OSError.
    """
    found = MACHINE_ID.read_text().strip() if MACHINE_ID.is_file() else ""
    if not re.fullmatch(r"[0-9a-f]{32}", found):
        ledgers.mkdir(parents=True, exist_ok=True)
        mark = ledgers / "mark"
        with suppress(FileExistsError):
            mark.touch(exist_ok=False)
        found = f"{mark.stat().st_ino} {mark.stat().st_ctime_ns}"
    return f"{found} {os.statvfs(root).f_fsid}"


class Digest:
    """One hash of all splits, paths, sizes and contents, in order."""

    def __init__(self) -> None:
        self._parts = [hashlib.sha256() for _ in range(3)]
        self._counts: dict[str, int] = {}
        self.files = self.bytes = 0

    def add(self, group: str, rows: Rows) -> None:
        """More files. Those of one group come one after another, in as many calls as one likes."""
        if not rows.paths:  # a ledger does not keep an empty group
            return
        sizes = rows.facts[:, 0]
        self._counts[group] = self._counts.get(group, 0) + len(rows.paths)
        self.files += len(rows.paths)
        self.bytes += int(sizes.sum())
        for digest, part in zip(
            self._parts, (b"".join(path + b"\0" for path in rows.paths), sizes.tobytes(), rows.hashes.tobytes()),
            strict=True,
        ):  # fmt: skip
            digest.update(part)

    def hex(self) -> str:
        parts = [list(self._counts.items()), *(digest.hexdigest() for digest in self._parts)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Header:
    machine: str
    rules: str  # by which its files were chosen
    decided: str  # what the files do not say of the content
    digest: str  # of all files, used and unused
    complete: bool  # all were read


def write_ledger(file: Path, header: Header, groups: Mapping[str, Rows]) -> None:
    """Write it whole or not at all. What an interrupted call has left is removed. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    for left in file.parent.glob(f"{file.name}.*.part"):
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > LEFT_SECONDS:
                left.unlink()
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    about = {"format": FORMAT, "groups": list(groups), **asdict(header)}
    schema = _SCHEMA.with_metadata({"ledger": json.dumps(about)})
    try:
        with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for number, rows in enumerate(groups.values()):
                for first in range(0, len(rows.paths), BATCH):
                    writer.write_batch(_to_batch(number, rows[first : first + BATCH]))
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def _to_batch(group: int, rows: Rows) -> Any:
    count = len(rows.paths)
    hashes = pa.Array.from_buffers(pa.binary(HASH_BYTES), count, [None, pa.py_buffer(rows.hashes.tobytes())])
    facts = [pa.array(np.ascontiguousarray(column)) for column in rows.facts.T]
    columns = [pa.array(np.full(count, group, np.uint8)), pa.array(rows.paths, pa.binary()), *facts]
    return pa.record_batch([*columns, pa.array(rows.settled.astype(np.uint8)), hashes], names=_SCHEMA.names)


def load_ledger(file: Path) -> Iterator[tuple[Header, str, Rows]]:
    """The header, and a group's name, with each few thousand files. Raises OSError, or ValueError if it is damaged."""
    with pa.OSFile(str(file)) as source, pa.ipc.open_stream(source) as reader:  # ArrowInvalid is a ValueError
        try:
            about = json.loads((reader.schema.metadata or {})[b"ledger"])
            if about["format"] != FORMAT or reader.schema.remove_metadata() != _SCHEMA:
                raise ValueError(f"{file} has format {about['format']!r}, not {FORMAT}")
            header = Header(**{field.name: about[field.name] for field in fields(Header)})
            for batch in reader:
                batch.validate(full=True)
                group = about["groups"][batch["group"][0].as_py()]
                yield header, group, _from_batch(batch)
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"{file} is damaged ({error})") from error


def _from_batch(batch: Any) -> Rows:
    def column(name: str, kind: type) -> npt.NDArray[Any]:  # to_numpy would import pandas, which takes 45 MB
        return np.frombuffer(batch[name].buffers()[1], kind)

    count = len(batch)
    facts = np.stack([column(fact, np.int64)[:count] for fact in FACTS], axis=1)
    hashes = column("hash", np.uint8)[: count * HASH_BYTES].reshape(-1, HASH_BYTES)
    return Rows(batch["path"].to_pylist(), facts, column("settled", np.uint8)[:count].astype(np.bool_), hashes)
