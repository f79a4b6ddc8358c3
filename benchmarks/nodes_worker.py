"""One machine's process in `make bench-nodes`: exchanges ResNet-50's gradients with the others, as DDP and at once.

Rank 0 prints a line of JSON: seconds of each way of exchange, a list of one number for each round.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from trainer.learning.model import build_model
from trainer.learning.world import Wishes, World
from trainer.recipes.config import ModelConfig

STEPS, STEP_SECONDS = 100, 0.05  # in which the process waits, as for its GPU


class Gradients(torch.nn.Module):
    """ResNet-50's parameters without its work: a backward pass costs little, so what is left is the exchange."""

    def __init__(self) -> None:
        super().__init__()
        shapes = [p.shape for p in build_model(ModelConfig(), initialise=False).parameters()]
        self.parts = torch.nn.ParameterList(torch.zeros(shape) for shape in shapes)

    def forward(self) -> torch.Tensor:
        return torch.stack([part.sum() for part in self.parts]).sum()


def rounds_of(work: Callable[[], object], rounds: int) -> list[float]:
    """Seconds of each round, of the slowest rank; all begin together. The first call is not counted."""
    work()
    seconds = []
    for _ in range(rounds):
        dist.barrier()
        began = time.perf_counter()
        work()
        slowest = torch.tensor([time.perf_counter() - began])
        dist.all_reduce(slowest, dist.ReduceOp.MAX)
        seconds.append(round(slowest.item(), 6))
    return seconds


def held(world: World) -> list[float]:
    """Seconds by which the question of each step (`world.Wishes`) makes it longer."""
    wishes, seconds = Wishes(lambda: [False, False], world), []
    for _ in range(STEPS):
        began = time.perf_counter()
        wishes.ask()
        asked = time.perf_counter()
        time.sleep(STEP_SECONDS)
        done = time.perf_counter()
        wishes.answer()
        seconds.append(round(asked - began + time.perf_counter() - done, 7))
    return seconds


def main(address: str, rank: int, world: int, rounds: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://{address}:29400", rank=rank, world_size=world)
    module = Gradients()
    numbers = sum(part.numel() for part in module.parts)
    ddp = DistributedDataParallel(module, static_graph=True, gradient_as_bucket_view=True)
    compressed = DistributedDataParallel(Gradients(), static_graph=True, gradient_as_bucket_view=True)
    compressed.register_comm_hook(None, bf16_compress_hook)
    whole, half = torch.zeros(numbers), torch.zeros(numbers, dtype=torch.bfloat16)
    seconds = {
        "all-reduce-fp32": rounds_of(lambda: dist.all_reduce(whole), rounds),
        "all-reduce-bf16": rounds_of(lambda: dist.all_reduce(half), rounds),
        "ddp-fp32": rounds_of(lambda: ddp().backward(), rounds),
        "ddp-bf16": rounds_of(lambda: compressed().backward(), rounds),
        "local": rounds_of(lambda: module().backward(), rounds),  # the same backward pass without an exchange
        "question": held(World(rank, 0, world, torch.device("cpu"))),
    }
    if rank == 0:
        print(json.dumps({"numbers": numbers, "seconds": seconds}), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], *(int(word) for word in sys.argv[2:5]))
