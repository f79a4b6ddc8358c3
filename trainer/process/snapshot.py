"""The memory in which a checkpoint travels from the trainer to the uploader: a file in memory that both have mapped.

Standard library only. The file has the bytes of the checkpoint, and then a note that says what they are. A process
that reads or writes holds the file's lock. The kernel releases the lock of a process that dies.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
from typing import Any

NOTE_BYTES = 1 << 17
VOID: dict[str, Any] = {"seq": 0}


class Snapshot:
    """One checkpoint in `body`, and a `note` on it: JSON with at least `seq`.

    A note with seq 0 says that the bytes mean nothing. The trainer sets it before it writes, so that a trainer killed
    in the middle leaves no torn checkpoint.
    """

    def __init__(self, fd: int):
        """Map a file that `create` made in this or another process. The snapshot owns the descriptor."""
        self.fd = fd
        self.lock_fd = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)  # opened anew: a lock belongs to an opening
        self.bytes = os.fstat(fd).st_size - NOTE_BYTES
        self.memory = mmap.mmap(fd, self.bytes + NOTE_BYTES)
        self.body = memoryview(self.memory)[: self.bytes]

    @classmethod
    def create(cls, size: int) -> Snapshot:
        """A new file. Every page is touched here, so that the first save is as fast as the others."""
        fd = os.memfd_create("snapshot")  # not /dev/shm, of which a container has 64 MB
        os.truncate(fd, size + NOTE_BYTES)
        snapshot = cls(fd)
        for page in range(0, size + NOTE_BYTES, mmap.PAGESIZE):
            snapshot.memory[page] = 0
        snapshot.note = VOID
        return snapshot

    @property
    def note(self) -> dict[str, Any]:
        size = int.from_bytes(self.memory[self.bytes : self.bytes + 4], "little")
        note: dict[str, Any] = json.loads(self.memory[self.bytes + 4 : self.bytes + 4 + size])
        return note

    @note.setter
    def note(self, value: dict[str, Any]) -> None:
        body = json.dumps(value).encode()
        if len(body) > NOTE_BYTES - 4:
            raise ValueError(f"the note has {len(body)} bytes, over {NOTE_BYTES - 4}")
        self.memory[self.bytes : self.bytes + 4 + len(body)] = len(body).to_bytes(4, "little") + body

    def lock(self, *, wait: bool) -> bool:
        """Take the lock; False if the other process holds it and `wait` is False."""
        try:
            fcntl.flock(self.lock_fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        return True

    def unlock(self) -> None:
        fcntl.flock(self.lock_fd, fcntl.LOCK_UN)
