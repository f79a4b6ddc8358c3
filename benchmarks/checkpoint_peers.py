"""Ways to save a training state to S3: ours, and what others do. Each is built in the process that trains.

`save` is the time for which training stands; the rest of the way happens while it goes on, until `done`.
"""

from __future__ import annotations

import io
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import boto3
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, async_save

from trainer.checkpoint.saver import Checkpointer
from trainer.process.channel import SOCKET_VARIABLE, Channel
from trainer.process.children import UploaderProcess

BUCKET = "bucket"
MANIFEST = {"config": {"recipe": "bench"}, "config_hash": "0" * 16, "data": "none", "versions": {"torch": "none"}}

State = Mapping[str, Tensor]


class Saver(Protocol):
    processes: dict[str, int]  # other than this one, by what they are

    def save(self, step: int) -> None: ...

    def done(self) -> bool:
        """Whether the last save is in the store."""
        ...

    def close(self) -> None: ...


class Ours:
    """The uploader's process, and the trainer's half of a checkpoint."""

    def __init__(self, state: State):
        scratch = tempfile.mkdtemp(dir=os.environ["TRAINER_SCRATCH_DIR"])
        environ = dict(os.environ) | {
            "TRAINER_STORE": f"s3://{BUCKET}/store",
            "TRAINER_RUN_ID": Path(scratch).name.replace("_", "-").lower(),
            "TRAINER_SCRATCH_DIR": scratch,
        }
        self.uploader = UploaderProcess(environ)
        assert self.uploader.state == "ready", "the uploader did not start"
        os.environ[SOCKET_VARIABLE] = self.uploader.socket
        self.processes = {"uploader": self.uploader.process.pid}
        self.checkpointer = Checkpointer(state, Channel.to_uploader(), MANIFEST)
        self.step = -1

    def save(self, step: int) -> None:
        self.checkpointer.save(step, {}, is_best=False)
        self.step = step

    def done(self) -> bool:
        self.checkpointer.poll()
        return f"step-{self.step:08d}." in self.checkpointer.committed

    def close(self) -> None:
        assert self.checkpointer.channel is not None
        self.checkpointer.close()
        self.checkpointer.channel.close()
        code = self.uploader.finish(10)
        assert code == 0, f"the uploader ended with {code}"


class Behind:
    """`hand_over(state, step)` stops training, and returns what is left to do: that runs in a thread."""

    def __init__(self, hand_over: Callable[[State, int], Callable[[], object] | None], state: State):
        self.hand_over, self.state = hand_over, state
        self.pool = ThreadPoolExecutor(1)
        self.left: Future[object] | None = None
        self.processes: dict[str, int] = {}

    def save(self, step: int) -> None:
        rest = self.hand_over(self.state, step)
        self.left = self.pool.submit(rest) if rest else None

    def done(self) -> bool:
        return self.left is None or (self.left.done() and self.left.result() is None)

    def close(self) -> None:
        self.pool.shutdown()
        if dist.is_initialized():
            dist.destroy_process_group()


def to_file(client: Any) -> Callable[[State, int], None]:
    path = Path(tempfile.mkdtemp(dir=os.environ["TRAINER_SCRATCH_DIR"])) / "checkpoint.pt"

    def save(state: State, step: int) -> None:
        torch.save(dict(state), path)
        client.upload_file(str(path), BUCKET, f"step-{step}.pt")

    return save


def to_memory(client: Any) -> Callable[[State, int], Callable[[], object]]:
    def save(state: State, step: int) -> Callable[[], object]:
        file = io.BytesIO()
        torch.save(dict(state), file)
        file.seek(0)
        return partial(client.upload_fileobj, file, BUCKET, f"step-{step}.pt")

    return save


def clones(client: Any) -> Callable[[State, int], Callable[[], object]]:
    def save(state: State, step: int) -> Callable[[], object]:
        copy = {name: tensor.detach().clone() for name, tensor in state.items()}

        def rest() -> None:
            file = io.BytesIO()
            torch.save(copy, file)
            copy.clear()
            file.seek(0)
            client.upload_fileobj(file, BUCKET, f"step-{step}.pt")

        return rest

    return save


def distributed(kind: AsyncCheckpointerType, client: Any) -> Callable[[State, int], Callable[[], object]]:
    """torch.distributed.checkpoint writes files; a thread uploads them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=0, world_size=1)
    parent = Path(tempfile.mkdtemp(dir=os.environ["TRAINER_SCRATCH_DIR"]))

    def save(state: State, step: int) -> Callable[[], object]:
        folder = parent / str(step)
        written = async_save(dict(state), checkpoint_id=folder, async_checkpointer_type=kind)
        assert isinstance(written, Future)

        def rest() -> None:
            written.result()
            for file in sorted(folder.iterdir()):
                client.upload_file(str(file), BUCKET, f"step-{step}/{file.name}")
            shutil.rmtree(folder)

        return rest

    return save


def behind(make: Callable[[Any], Callable[[State, int], Callable[[], object] | None]]) -> Callable[[State], Saver]:
    return lambda state: Behind(make(boto3.session.Session().client("s3")), state)


OURS = "ours"
BUFFERS = 2  # of ours
SAVERS: dict[str, Callable[[State], Saver]] = {
    OURS: Ours,
    "torch.save to a file, boto3, synchronous": behind(to_file),
    "torch.save to memory, boto3 in a thread": behind(to_memory),
    "clone; torch.save and boto3 in a thread": behind(clones),
    "DCP async_save in a thread, then boto3": behind(partial(distributed, AsyncCheckpointerType.THREAD)),
    "DCP async_save in a process, then boto3": behind(partial(distributed, AsyncCheckpointerType.PROCESS)),
}
