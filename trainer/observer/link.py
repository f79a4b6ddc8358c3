"""The observer's connection to the uploader: samples and reports go out, rows and commits come in. It never waits."""

from __future__ import annotations

import json
import os
import socket
from array import array
from collections.abc import Iterator
from pathlib import Path

from trainer.process.channel import Channel, DisconnectedError, Message

MOST_ROWS_BYTES = 64 << 20  # of a segment of metrics


class Link:
    """A socket beside that of the trainer. Whoever is connected to it does not claim the run."""

    def __init__(self, path: Path):
        self.path = path
        self.channel: Channel | None = None

    def open(self) -> None:
        """Raises OSError where the uploader does not listen."""
        if self.channel is None:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            connection.setblocking(False)
            try:
                connection.connect(str(self.path))
            except OSError:
                connection.close()
                raise
            self.channel = Channel(connection)

    def put(self, key: str, body: bytes) -> bool:
        """Hand an object over, in memory. Returns False if the uploader does not take it now."""
        if self.channel is None:
            return False
        try:
            fd = os.memfd_create("observed")
        except OSError:  # no memory, or no descriptor is left
            return False
        try:
            os.write(fd, body)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [fd]))]
            message = json.dumps({"op": "put", "key": key}).encode()
            self.channel.connection.sendmsg([message], rights, socket.MSG_DONTWAIT)
        except OSError:
            return False
        finally:
            os.close(fd)
        return True

    def heard(self) -> Iterator[tuple[Message, bytes]]:
        """What the uploader has told, each with the bytes of a segment or none. Never waits."""
        while self.channel is not None:
            try:
                message, fd = self.channel.receive(timeout=0)
            except BlockingIOError:
                return
            except (DisconnectedError, OSError):  # the uploader has ended: so will this process soon
                self.close()
                return
            body = b""
            if fd is not None:
                body = os.pread(fd, MOST_ROWS_BYTES, 0)
                os.close(fd)
            yield message, body

    def close(self) -> None:
        if self.channel is not None:
            self.channel.close()
            self.channel = None
