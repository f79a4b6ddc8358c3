"""The product's own training step on one batch of random images: its rate by precision, size and option.

`ours` is the one place that knows how the product builds a step.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.gpu.measure import Found, NotMeasuredError, Place, noise, timed
from trainer.data.augment.batch import draws_per_image
from trainer.data.reading.loader import Batch
from trainer.learning.execution import Execution
from trainer.learning.schedule import Settings
from trainer.learning.state import State, make_state
from trainer.learning.step import train_step
from trainer.learning.world import World
from trainer.recipes.config import Config, DataConfig, ModelConfig, RegularizeConfig
from trainer.setup import set_backends

LEARNING_RATE = 0.02
STEM = "model.blocked_stem"
Options = Mapping[str, Any]  # of the config, by dotted name


@dataclass(frozen=True)
class Ours:
    """The product's training, ready for its next step."""

    config: Config
    state: State
    step: Callable[[], Tensor]  # returns the sums of loss, top-1 hits, top-5 hits and images


def config_of(place: Place, options: Options | None = None, *, batch: int = 0, pixels: int = 0) -> Config:
    """ResNet-50 in bf16 with an average and label smoothing, and with `options`. Raises NotMeasuredError."""
    batch, pixels = batch or place.batch, pixels or place.pixels
    few = place.tiny and not {"compile", STEM}.isdisjoint(options or {})
    network = "resnet18" if few else place.network  # of fewer layers to compile, and with a stem
    config = Config(
        global_batch_size=batch, device_batch_size=batch, model=ModelConfig(name=network),
        data=DataConfig(resolution=pixels, start_resolution=pixels), regularize=RegularizeConfig(ema_decay=0.999),
    )  # fmt: skip
    for name, value in (options or {}).items():
        config = _with(config, name, value)
    return config


def _with(tree: Any, name: str, value: Any) -> Any:
    field, _, rest = name.partition(".")
    if field not in {one.name for one in dataclasses.fields(tree)}:
        raise NotMeasuredError(f"this version of the trainer has no option {name}")
    return dataclasses.replace(tree, **{field: _with(getattr(tree, field), rest, value) if rest else value})


def feed(place: Place, config: Config) -> Iterator[Batch]:
    """The same batch again and again."""
    count = config.device_batch_size
    images, labels, flips = noise(place, count, config.data.resolution)
    draws = np.random.default_rng(1).random((count, draws_per_image(config.regularize)))
    while True:
        yield Batch(images, labels, flips, draws)


def ours(
    place: Place,
    config: Config,
    *,
    batches: Iterator[Batch] | None = None,
    compiled: Callable[[nn.Module], Any] | None = None,
) -> Ours:
    """The product's step as `trainer.setup` and `trainer.train` build it. `compiled` replaces how it is compiled."""
    set_backends(config)
    torch._dynamo.reset()
    config = replace(config, compile_strict=config.compile)  # a step that fell back would be measured as compiled
    state, world = make_state(config, place.device, initialise=True), World(0, 0, 1, place.device)
    execution = Execution.of(config, state, world, tell_on_errors)
    if compiled is not None:
        execution.net = compiled(execution.eager)
    batches = batches or feed(place, config)
    settings = Settings(
        epoch=0.0, lr=LEARNING_RATE, resolution=config.data.resolution, ema_decay=config.regularize.ema_decay or 1.0
    )
    return Ours(config, state, lambda: train_step(state, execution, batches, config, settings, world))


def tell_on_errors(line: str) -> None:
    print(line, file=sys.stderr)


def rate(place: Place, *, batch: int = 0, pixels: int = 0, rounds: int = 5, **options: Any) -> Found:
    """Images/s of the product's step with options, `data__resolution` for --data.resolution.

    `cold` says whether no row before had compiled kernels on this machine.
    """
    config = config_of(place, dotted(options), batch=batch, pixels=pixels)
    cache = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    compiling = {"cold": not (cache.is_dir() and any(cache.iterdir()))} if config.compile else {}
    return timed(place, ours(place, config).step, config.device_batch_size, rounds=rounds) | compiling


def dotted(options: Options) -> dict[str, Any]:
    return {name.replace("__", "."): value for name, value in options.items()}


def several(place: Place, variants: Mapping[str, Options], rounds: int = 3) -> Found:
    """Images/s by name of a variant. One that cannot be measured says so, and the others are measured."""
    found: Found = {}
    for name, options in variants.items():
        place.forget()
        try:
            found[name] = rate(place, rounds=rounds, **options)
        except NotMeasuredError as error:
            found[name] = {"not_measured": str(error)}
    return found


def memory(place: Place) -> Found:
    """Peak memory by batch size, and torch's words for a batch that does not fit."""
    found: Found = {}
    batches = {str(batch): batch for batch in ((2, 4) if place.tiny else (128, 256, 512))}
    if place.on_gpu and not place.tiny:  # one that cannot fit: each image needs about 44 MB
        batches["too large"] = int(torch.cuda.mem_get_info(place.device)[1] / 30e6)
    for name, batch in batches.items():
        place.forget()
        try:
            found[name] = rate(place, batch=batch, rounds=1 if name == "too large" else 3)
        except torch.OutOfMemoryError as error:
            found[name] = {"batch": batch, "out_of_memory": str(error).partition("\n")[0]}
    return found


def host(place: Place) -> Found:
    """So little for the GPU that a step takes what the processor needs for it."""
    small: Options = {"batch": 4, "pixels": 32}
    return several(place, {"eager": small, **({"cuda_graphs": {**small, "cuda_graphs": True}} if place.on_gpu else {})})


def resolutions(place: Place, *, dynamic: bool | None) -> Found:
    """A compiled step over several resolutions: a graph for each, or torch's own choice, one with symbolic sizes."""
    sizes = (32, 40) if place.tiny else (160, 224, 192, 224)
    feeds = {size: feed(place, config_of(place, pixels=size)) for size in sizes}
    now = sizes[0]

    def batches() -> Iterator[Batch]:
        while True:
            yield next(feeds[now])

    precision = "fp32" if place.tiny else "bf16"  # a processor without bf16 takes seconds for a step
    config = config_of(place, {"compile": True, "precision": precision})
    training = ours(place, config, batches=batches(), compiled=lambda net: torch.compile(net, dynamic=dynamic))
    torch._dynamo.config.recompile_limit = 2 * len(sizes)
    found: Found = {}
    for number, now in enumerate(sizes, 1):
        found[f"{number}: {now} px"] = timed(place, training.step, rounds=3)
    return found
