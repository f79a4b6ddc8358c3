"""The processes of a run: torchrun's variables, the process group, and the few collectives that the trainer needs.

With one process every function here is the identity: the same lines run on a laptop, on one GPU and on many.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

from trainer.learning.device import device_for
from trainer.learning.meeting import meet
from trainer.recipes.config import Config
from trainer.text import say


@dataclass(frozen=True)
class World:
    rank: int  # 0 is the main process: the first one of the machine that owns the run
    local_rank: int
    size: int
    device: torch.device
    nodes: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0


@contextmanager
def join(config: Config, tell_last: Callable[[str], object] = say) -> Iterator[World]:
    """Join torchrun's process group (NCCL on GPUs, gloo on a CPU) and leave it at the end.

    Raises MachineError where the processes do not find each other, or not one machine that owns the run. `tell_last`
    gets the message where this process has to end at once.
    """
    rank, local_rank, size = (int(os.environ.get(name, default)) for name, default in
                              (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1")))  # fmt: skip
    device = device_for(config, local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # gloo beside NCCL: flags and counts of the host travel without touching the GPU's stream.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        if size > 1:
            rank = meet(os.environ, backend, tell_last)
        yield World(rank, local_rank, size, device, int(os.environ.get("GROUP_WORLD_SIZE", "1")))
    finally:
        if size > 1 and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def wrap(model: nn.Module, world: World, *, bf16_gradients: bool = False) -> nn.Module:
    """DistributedDataParallel where there is more than one process. Each normalises by its own batch, as torch does.

    With `bf16_gradients` each sends its gradients, divided by the number of processes, rounded to bf16.

    The statistics of BatchNorm are the main process's: `share_buffers` sends them where they are needed.
    `static_graph` would save a search for unused parameters, which is not made here anyway; and with gradients that are
    accumulated under `no_sync` it stops exchanging them, or fails (pytorch#187732).
    """
    if world.size == 1:
        return model
    ids = [world.local_rank] if world.device.type == "cuda" else None
    with warnings.catch_warnings():
        # Its successor, forward_sync_buffers, is only in torch 2.15 and later.
        warnings.filterwarnings("ignore", ".*broadcast_buffers.* is deprecated", FutureWarning)
        wrapped = nn.parallel.DistributedDataParallel(
            model, device_ids=ids, gradient_as_bucket_view=True, broadcast_buffers=False
        )
    if bf16_gradients:
        wrapped.register_comm_hook(None, bf16_compress_hook)
    return wrapped


def without_sync(net: nn.Module, skip: bool) -> AbstractContextManager[None]:
    """Gradients stay local while `skip`: all micro-batches of a step but the last."""
    no_sync = getattr(net, "no_sync", None)
    return no_sync() if skip and no_sync is not None else nullcontext()


def all_sum(values: Tensor, world: World) -> Tensor:
    """The sum over all processes, in place."""
    if world.size > 1:
        torch.distributed.all_reduce(values)
    return values


def barrier(world: World) -> None:
    """Wait for all processes."""
    all_sum(torch.zeros(1), world)


def agree(value: int, world: World) -> None:
    """Raises RuntimeError when the processes have different values: they would train different models."""
    if any_of(bool(all_sum(torch.tensor(float(value), dtype=torch.float64), world) != value * world.size), world):
        raise RuntimeError(f"the processes of this run restored different checkpoints, this one step {value}")


def empty_cache(world: World) -> None:
    """Give unused blocks of GPU memory back, where the sizes of tensors are about to change."""
    if world.device.type == "cuda":
        torch.cuda.empty_cache()


def share_buffers(model: nn.Module, world: World) -> None:
    """The main process's BatchNorm statistics, which are those that are saved, on every process: one call a dtype."""
    if world.size > 1:
        buffers = list(model.buffers())
        for dtype in dict.fromkeys(buffer.dtype for buffer in buffers):
            alike = [buffer for buffer in buffers if buffer.dtype == dtype]
            sent = torch.cat([buffer.flatten() for buffer in alike])
            torch.distributed.broadcast(sent, src=0)
            for buffer, values in zip(alike, sent.split_with_sizes([buffer.numel() for buffer in alike]), strict=True):
                buffer.copy_(values.view_as(buffer))


def any_of(flag: bool, world: World) -> bool:
    """True on every process when it is true on one."""
    return bool(all_sum(torch.tensor(flag, dtype=torch.int64), world))


class Wishes:
    """What any process wants, by one question a step, which travels while the step computes.

    So no step waits for it. What a process wants during a step, the others hear of with the next one. One process has
    nobody to ask, and answers when it is asked, after the step.
    """

    def __init__(self, flags: Callable[[], list[bool]], world: World):
        self.flags, self.world = flags, world
        self.counts: Tensor | None = None
        self.work: torch.distributed.Work | None = None

    def ask(self) -> None:
        """Before the step."""
        if self.world.size > 1:
            self.counts = torch.tensor(self.flags(), dtype=torch.int64)
            self.work = torch.distributed.all_reduce(self.counts, async_op=True)

    def answer(self) -> list[bool]:
        """After the step: for each flag whether one process has it. All processes get the same."""
        if self.counts is None or self.work is None:
            return self.flags()
        self.work.wait()
        return [count > 0 for count in self.counts.tolist()]
