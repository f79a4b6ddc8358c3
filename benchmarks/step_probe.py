"""One training step of the `trainer` that is on the path, measured on a CPU: what it dispatches, and its milliseconds.

    PYTHONPATH=CHECKOUT python -P benchmarks/step_probe.py        (`benchmarks.step` starts it, once for each commit)

The network is ResNet-50 with a sixteenth of its channels, on two images of 32 pixels. It has every layer, every tensor
and every operation of ResNet-50, but its arithmetic costs next to nothing. What is left is the host's work: Python,
autograd and torch's dispatcher. It answers each line on standard input with a line of JSON.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.resnet import Bottleneck, ResNet

BATCH, PIXELS, CLASSES, NARROWER = 2, 32, 1000, 16
WARM, STEPS = 5, 20  # steps before the first measurement, and in one measurement
REGULARIZE: dict[str, dict[str, Any]] = {
    "plain": {"ema_decay": 0.999},
    "augmented": {"ema_decay": 0.999, "augment": "trivial", "erasing_probability": 0.1, "mixup_alpha": 0.2},
}
NO_KERNEL = (
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh",
    "_local_scalar_dense",  # only one_hot's check of labels, which it leaves out on a GPU
)  # fmt: skip
Step = Callable[[], object]


class Narrow(ResNet):  # type: ignore[misc]
    """ResNet-50 with fewer channels: the same layers, names and number of tensors."""

    def __init__(self, num_classes: int):
        super().__init__(Bottleneck, [3, 4, 6, 3])
        self.fc = nn.Linear(512 * Bottleneck.expansion // NARROWER, num_classes)

    def _make_layer(self, block: Any, planes: int, *rest: Any, **more: Any) -> Any:
        return super()._make_layer(block, planes // NARROWER, *rest, **more)


def narrow(name: str, *, weights: None, num_classes: int) -> nn.Module:
    """In place of torchvision's `get_model`."""
    return Narrow(num_classes)


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what reaches the dispatcher below autograd, by name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: Counter[torch._ops.OpOverload] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found[func] += 1
        return func(*args, **(kwargs or {}))


def count(step: Step) -> dict[str, Any]:
    """Of one step: all operations, those that launch a kernel on a GPU, and which of them are frequent."""
    with Operations() as operations:
        step()
    names = Counter({str(op).removeprefix("aten."): n for op, n in operations.found.items() if launches(op)})
    return {
        "operations": operations.found.total(),
        "kernels": names.total(),
        "most": dict(names.most_common(16)),
    }


def launches(op: torch._ops.OpOverload) -> bool:
    """Whether an operation works on a device: neither a view nor mere memory. A list of tensors counts once."""
    return not op.is_view and op._schema.name.split("::")[-1] not in NO_KERNEL


def milliseconds(step: Step) -> float:
    """Of the processor, which other programs do not change: median over STEPS steps."""
    took = []
    for _ in range(STEPS):
        begin = time.process_time()
        step()
        took.append(time.process_time() - begin)
    return statistics.median(took) * 1e3


def product(case: str) -> Step:
    """The trainer's own step with a batch that is there already; its signature has changed, so each has an adapter."""
    adapter = before_the_rooms if importlib.util.find_spec("trainer.learning") is None else in_rooms
    return adapter(REGULARIZE[case])


def before_the_rooms(regularize: dict[str, Any]) -> Step:  # f2853a4
    names = ("train", "config", "state", "dist", "data.augment", "data.loader")
    train, config, state, dist, augment, loader = (importlib.import_module(f"trainer.{name}") for name in names)
    settings = configured(config.Config, config.RegularizeConfig(**regularize))
    device = torch.device("cpu")
    made, world = state.make_state(settings, device, initialise=True), dist.World(0, 0, 1, device)
    feed = batches(loader.Batch, augment.draws_per_image(settings.regularize))
    plan = train.Plan(steps_per_epoch=10**6, total_steps=10**6, val_every_epochs=1)
    return lambda: train.train_step(made, made.model, feed, settings, plan, world, lambda: None)


def in_rooms(regularize: dict[str, Any]) -> Step:  # from 2a2b5b3 on
    from trainer.data.augment.batch import draws_per_image
    from trainer.data.reading.loader import Batch
    from trainer.learning import step
    from trainer.learning.schedule import Settings
    from trainer.learning.state import make_state
    from trainer.learning.world import World
    from trainer.recipes.config import Config, RegularizeConfig

    config = configured(Config, RegularizeConfig(**regularize))
    device = torch.device("cpu")
    state, world = make_state(config, device, initialise=True), World(0, 0, 1, device)
    feed = batches(Batch, draws_per_image(config.regularize))
    settings = called(
        Settings, {"epoch": 0.0, "lr": 0.1, "resolution": PIXELS, "ema_decay": config.regularize.ema_decay}
    )
    known = {
        "state": state, "net": state.model, "batches": feed, "config": config, "settings": settings, "world": world,
        "before_update": lambda: None, "say": print,
    }  # fmt: skip
    if importlib.util.find_spec("trainer.learning.execution") is not None:
        known["execution"] = called(importlib.import_module("trainer.learning.execution").Execution.of, known)
    return lambda: called(step.train_step, known)


def called(function: Callable[..., Any], known: dict[str, Any]) -> Any:
    """The function's result with those arguments that it has: from commit to commit it has others."""
    return function(**{name: known[name] for name in parameters_of(function) if name in known})


@cache
def parameters_of(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


def configured(kind: Any, regularize: Any) -> Any:
    """bf16, as recipes are, without gradient accumulation."""
    return kind(global_batch_size=BATCH, device_batch_size=BATCH, precision="bf16", regularize=regularize)


def batches(kind: Any, draws: int) -> Iterator[Any]:
    """The same batch again and again."""
    rng = np.random.default_rng(0)
    one = kind(
        images=torch.from_numpy(rng.integers(0, 256, (BATCH, PIXELS, PIXELS, 3), dtype=np.uint8)),
        labels=torch.arange(BATCH), flips=torch.arange(BATCH) % 2 == 0, draws=rng.random((BATCH, draws)),
    )  # fmt: skip
    while True:
        yield one


def bare() -> Step:
    """The least that an eager step of this network does: forward, loss, backward, a fused update. No trainer in it."""
    net = Narrow(CLASSES).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-5, fused=True)
    images, labels = torch.randn(BATCH, 3, PIXELS, PIXELS), torch.arange(BATCH)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(images)
        F.cross_entropy(logits.float(), labels, label_smoothing=0.1).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def main() -> None:
    torch.set_num_threads(1)
    # oneDNN takes longer to begin than such a layer takes to compute.
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    torchvision.models.get_model = narrow
    steps = {"bare": bare()} | {case: product(case) for case in REGULARIZE}
    for step in steps.values():
        for _ in range(WARM):
            step()
    print(json.dumps({case: count(step) for case, step in steps.items()}), flush=True)
    for _ in sys.stdin:
        print(json.dumps({case: milliseconds(step) for case, step in steps.items()}), flush=True)


if __name__ == "__main__":
    main()
