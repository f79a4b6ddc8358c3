"""How the processes of one attempt talk on one machine: through a socket and three small files.

Standard library only. The supervisor owns the directory, the trainer keeps `status.json` and leaves `exit.json`, the
uploader listens on the socket. Nothing here knows the store.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.contract import Exit, LostRunError, RunEnv, UserError

Message = dict[str, Any]
SOCKET_VARIABLE = "TRAINER_UPLOADER_SOCKET"
SOCKET_PATH_BYTES = 107
EXIT_BYTES = 4096  # one page, reserved for the reason of a process to end


def attempt_dir(env: RunEnv) -> Path:
    """The folder of one attempt on this machine. Its files may be lost at any time."""
    return Path(env.scratch_dir).absolute() / "runs" / env.run_id / env.attempt


def register(folder: Path) -> None:
    """Tell the supervisor which process gets the signals. Called as early as possible.

    Until the trainer handles SIGTERM itself, it ends this process. A worker of an attempt that is over ends at once:
    torchrun has started it again, for machines that have met anew, and the supervisor begins the next attempt. So it
    is where the workers before it were killed, as torchrun does 30 s after a newcomer's SIGTERM (torch 2.15 has no
    option for it: local_elastic_agent.py, _stop_workers). Else the attempt would have steps and checkpoints twice.
    `status.json` tells of them: it is not written before all workers have registered, nor left by another attempt.
    """
    is_over = (folder / "exit.json").exists()
    if not is_over and (folder / "status.json").exists():
        leave_exit(folder, Exit.INTERRUPTED, "its processes were killed before they had saved and ended")
        is_over = True
    if is_over:
        os._exit(0)

    mine = folder / "pids" / str(os.getpid())

    def leave(*_: object) -> None:
        # Whoever leaves these has died without a word. torchrun ends this one where it lost the machine that leads.
        for path in (exit_file(folder), mine):
            with contextlib.suppress(OSError):
                path.unlink()
        os._exit(0)

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # "save and go on": there is nothing to save yet
    with contextlib.suppress(OSError):  # the disk is full already; leave_exit may find room later
        exit_file(folder).write_bytes(b" " * EXIT_BYTES)
    mine.touch()


def write_json(path: Path, value: Message) -> None:
    """Replace a small file in one step: a reader sees the old file or the new one, never half of one.

    On a full disk the old file is overwritten in place. Raises OSError.
    """
    body = json.dumps(value).ljust(511).encode() + b"\n"
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(body)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        with path.open("r+b") as file:
            file.write(body)
            file.truncate()  # not all values are of one length


def read_json(path: Path) -> Message | None:
    """The value in the file; None if the file does not exist."""
    try:
        value: Message = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    return value


def exit_file(folder: Path) -> Path:
    """The file for this process's reason to end. It is made at the start, while the disk has room."""
    return folder / f".exit.{os.getpid()}"


def leave_exit(
    folder: Path, code: int, message: str, *, run_failed: bool = False, lost_partner: bool = False
) -> None:  # fmt: skip
    """Leave the exit code and its reason for the supervisor. If several processes do so, the first one counts.

    But whoever only lost another process (`lost_partner`) knows less than one with a reason of its own.

    This overwrites the file that register() made. On a full disk only the message gets shorter.
    """

    def reason() -> bytes:
        told = {"code": code, "message": message, "run_failed": run_failed, "lost_partner": lost_partner}
        return json.dumps(told).encode().ljust(EXIT_BYTES)

    mine, whole = exit_file(folder), False
    fd = os.open(mine, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        with contextlib.suppress(OSError):
            whole = os.pwrite(fd, reason(), 0) == len(reason())
        if not whole:
            while len(reason()) > EXIT_BYTES:
                message = message[: len(message) * 3 // 4]
            os.truncate(fd, EXIT_BYTES)
            os.pwrite(fd, reason(), 0)
    finally:
        os.close(fd)
    try:
        os.link(mine, folder / "exit.json")  # whole or not at all
    except FileExistsError:
        if not lost_partner and (read_json(folder / "exit.json") or {}).get("lost_partner"):
            mine.replace(folder / "exit.json")
    except OSError:  # a file system without hard links
        if not (folder / "exit.json").exists():
            mine.replace(folder / "exit.json")
    mine.unlink(missing_ok=True)


def observer_socket(path: str) -> Path:
    """The socket for the observer, beside that of the trainer. Both paths have the same length."""
    return Path(path).with_name("observer")


def listen() -> tuple[socket.socket, str]:
    """A listening Unix socket and its path, in a temporary folder. Raises UserError where none can be made."""
    places, reasons = ["/tmp", "/dev/shm"], []
    with contextlib.suppress(OSError):  # none of the usual folders can be written
        places.insert(0, tempfile.gettempdir())
    for place in places:  # a path of TMPDIR may be too long for a socket, or on another's disk
        folder = ""
        server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            folder = tempfile.mkdtemp(prefix="resnet-spot-", dir=place)
            server.bind(path := str(Path(folder) / "uploader"))
        except OSError as error:
            reasons.append(f"{place}: {error}")
            server.close()
            if folder:
                Path(folder).rmdir()
            continue
        server.listen(8)
        return server, path
    raise UserError(
        f"no socket can be made ({'; '.join(reasons)}): its path may have {SOCKET_PATH_BYTES} bytes, and the file "
        "system must take sockets; name a short folder on a local disk, for example TMPDIR=/tmp"
    )


def may_be_read(fd: int, seconds: float | None) -> bool:
    """Whether there is something to read, or the end, within this time (None: wait). Takes every number of a file."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(None if seconds is None else seconds * 1000))


class DisconnectedError(ConnectionError):
    """The process at the other end has ended, or has failed."""

    def __init__(self, reason: str = "the uploader has died, and nothing can be saved any more") -> None:
        super().__init__(f"{reason}; start again: it continues from the newest checkpoint")


class Channel:
    """One end of the socket: JSON messages of up to 128 KiB, each with at most one file descriptor.

    A message that was sent reaches the other end even if the sender is killed right after.
    """

    MESSAGE_BYTES = 1 << 17

    def __init__(self, connection: socket.socket):
        self.connection = connection

    @classmethod
    def connect(cls, path: str) -> Channel:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, cls.MESSAGE_BYTES * 4)
        connection.connect(path)
        return cls(connection)

    @classmethod
    def to_uploader(cls) -> Channel:
        """Connect to the uploader that the supervisor started, and wait until it owns the run for this attempt.

        Raises LostRunError if another attempt owns it, DisconnectedError if the uploader failed.
        """
        channel = cls.connect(os.environ[SOCKET_VARIABLE])
        try:
            greeting, _ = channel.receive()
            if "lost" in greeting:
                raise LostRunError(greeting["lost"])
            if "failed" in greeting:
                raise DisconnectedError(greeting["failed"])
        except BaseException:
            channel.close()
            raise
        return channel

    def send(self, message: Message, fd: int | None = None) -> None:
        """Raises DisconnectedError if the other process has ended, ValueError if the message is too long."""
        body = json.dumps(message).encode()
        if len(body) > self.MESSAGE_BYTES:
            raise ValueError(f"message {message.get('op')!r} has {len(body)} bytes, over {self.MESSAGE_BYTES}")
        try:
            socket.send_fds(self.connection, [body], [fd] if fd is not None else [])
        except ConnectionError as error:
            raise DisconnectedError from error

    def receive(self, timeout: float | None = None) -> tuple[Message, int | None]:
        """The next message and its descriptor. Raises TimeoutError (BlockingIOError at 0) or DisconnectedError."""
        self.connection.settimeout(timeout)
        try:
            body, fds, _, _ = socket.recv_fds(self.connection, self.MESSAGE_BYTES, 1)
        except ConnectionResetError as error:
            raise DisconnectedError from error
        finally:
            self.connection.settimeout(None)
        if not body:
            raise DisconnectedError
        return json.loads(body), fds[0] if fds else None

    def pending(self) -> Iterator[Message]:
        """The messages that have arrived. Never waits. Raises DisconnectedError."""
        with contextlib.suppress(BlockingIOError):
            while True:
                yield self.receive(timeout=0)[0]

    def close(self) -> None:
        self.connection.close()
