"""CUDA graphs: work on the GPU that is captured once and then launched whole, instead of a thousand kernels each time.

A kernel takes the processor about 10 µs to launch, and on a fast GPU small images leave less than that for its work.
An experiment before this code measured it on an H100, at 112 px (benchmarks/results/gpu-h100.json, rows lean@112 and
cfull@112): a graph alone made 14,226 images/s of 11,620, and over a compiled step 19,114 of 9,019.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from trainer.contract import UserError
from trainer.learning.state import State
from trainer.learning.world import World
from trainer.recipes.config import Config

WARM_UPS = 3  # runs before a capture, in which libraries choose their kernels (torch's notes on CUDA graphs)


@cache
def capture_stream() -> Any:
    """The stream of all warm-ups and captures. Each further one would keep a workspace of cuBLAS for good."""
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


class Graph:
    """`work(*inputs)` as one launch. Shapes, dtypes and addresses are those of the capture."""

    def __init__(self, work: Callable[..., Tensor | None], inputs: tuple[Tensor, ...] = ()):
        """Capture the work, which does not run meanwhile; it has run before, in `warm_up`.

        Raises UserError where it cannot be captured.
        """
        self.inputs = [tensor.clone() for tensor in inputs]
        self.graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(self.graph, stream=capture_stream(), capture_error_mode="thread_local"):
                self.output = work(*self.inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"--cuda-graphs: a step cannot be captured here ({reason}): pass --no-cuda-graphs"
            ) from error

    def __call__(self, *inputs: Tensor) -> Any:
        """Run the work on new values. The output is overwritten by the next call."""
        for into, new in zip(self.inputs, inputs, strict=True):
            into.copy_(new, non_blocking=True)
        self.graph.replay()
        return self.output


def warm_up(work: Callable[[], object]) -> None:
    """Run the work before its capture, on another stream than the training's, as a capture does."""
    stream = capture_stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            work()
    torch.cuda.current_stream().wait_stream(stream)


def check_graphs(config: Config, state: State, world: World) -> None:
    """Raises UserError where --cuda-graphs cannot work, with the reason."""
    reasons = [
        (world.device.type != "cuda", "it needs a GPU, and this process trains on a CPU"),
        (world.size > 1, f"it works for one process, and there are {world.size}: their sums travel between kernels"),
        (
            state.draws,
            f"{config.model.name} draws random numbers, which a graph would repeat: a ResNet without stochastic depth "
            "draws none",
        ),
    ]
    for holds, reason in reasons:
        if config.cuda_graphs and holds:
            raise UserError(f"--cuda-graphs: {reason}; pass --no-cuda-graphs")


def hold_gradients(state: State) -> None:
    """Give each parameter that trains a gradient of zeros that stays where it is: a graph writes to addresses."""
    for parameter in state.model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter, memory_format=torch.preserve_format)
