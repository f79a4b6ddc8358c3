"""What each part of a recipe costs a training step on a CPU: images/s with it and without, interleaved.

    make bench-parts ARGS="--rounds 12"

Each case is the trainer's own step of ResNet-50 with one part more than the plain one. The batch is there already, so
decoding counts nowhere. Cases take turns, and a ratio is of one round: the processor's time of the plain step over
that of the case.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import torch

from benchmarks.machine import write
from trainer.data.augment.batch import draws_per_image
from trainer.data.reading.loader import Batch
from trainer.learning.execution import Execution
from trainer.learning.schedule import Clock
from trainer.learning.state import make_state
from trainer.learning.step import train_step
from trainer.learning.world import World
from trainer.recipes.config import AverageConfig, Config, ModelConfig, OptimConfig, RegularizeConfig

BATCH, PIXELS = 16, 96
BASE = Config(
    global_batch_size=BATCH, device_batch_size=BATCH, precision="fp32", optim=OptimConfig(peak_lr=0.01),
    regularize=RegularizeConfig(label_smoothing=0.1),
)  # fmt: skip
LOSS = replace(BASE.regularize, loss="bce")
CASES = MappingProxyType(
    {
        "plain": BASE,
        "plain, again": BASE,  # the noise
        "BlurPool of convolutions": replace(BASE, model=ModelConfig(blur_pool="convs")),
        "BlurPool of all": replace(BASE, model=ModelConfig(blur_pool="all")),
        "stochastic depth": replace(BASE, model=ModelConfig(stochastic_depth=0.05)),
        "EMA each step": replace(BASE, regularize=replace(BASE.regularize, ema_decay=0.999)),
        "EMA each 20 steps": replace(BASE, average=AverageConfig(half_life_steps=100, every_steps=20)),
        "BCE": replace(BASE, regularize=LOSS),
        "mixup and cutmix": replace(BASE, regularize=replace(BASE.regularize, mixup_alpha=0.2, cutmix_alpha=1.0)),
        "TrivialAugment": replace(
            BASE, regularize=replace(BASE.regularize, augment="trivial", interpolation="bilinear")
        ),
        "RandAugment of timm": replace(
            BASE, regularize=replace(
                BASE.regularize, augment="timm_rand", interpolation="bilinear", rand_magnitude=6, rand_std=0.5
            ),
        ),
        "random erasing": replace(BASE, regularize=replace(BASE.regularize, erasing_probability=0.1)),
        "LAMB": replace(BASE, optim=OptimConfig(name="lamb", peak_lr=0.005, eps=1e-6)),
        "AdamW": replace(BASE, optim=OptimConfig(name="adamw", peak_lr=0.001)),
        "clipping": replace(BASE, optim=replace(BASE.optim, clip_norm=1.0)),
    }
)  # fmt: skip


def batches(config: Config) -> Iterator[Batch]:
    """The same batch again and again."""
    rng = np.random.default_rng(0)
    one = Batch(
        images=torch.from_numpy(rng.integers(0, 256, (BATCH, PIXELS, PIXELS, 3), dtype=np.uint8)),
        labels=torch.arange(BATCH), flips=torch.arange(BATCH) % 2 == 0,
        draws=rng.random((BATCH, draws_per_image(config.regularize))),
    )  # fmt: skip
    while True:
        yield one


def step_of(config: Config) -> Callable[[], object]:
    """The trainer's step of this config."""
    device = torch.device("cpu")
    state, world = make_state(config, device, initialise=True), World(0, 0, 1, device)
    execution, feed = Execution.of(config, state, world, print), batches(config)
    clock = Clock(config=config, steps_per_epoch=1000)
    return lambda: train_step(state, execution, feed, config, clock.at(state.step), world)


def seconds(step: Callable[[], object]) -> float:
    """Of all cores together, which other programs change little."""
    begin = time.process_time()
    step()
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-parts", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=12, help="interleaved measurements (%(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)  # two would wait for each other where other programs run
    steps = {name: step_of(config) for name, config in CASES.items()}
    for step in steps.values():
        step()
    took = [{name: seconds(step) for name, step in steps.items()} for _ in range(options.rounds)]
    rows = {}
    for name in CASES:
        shares = [one["plain"] / one[name] for one in took]
        middle = statistics.median(one[name] for one in took)
        rows[name] = {
            "images_per_cpu_second": round(BATCH / middle, 1),
            "share_of_plain": round(statistics.median(shares), 3),
            "all": [round(share, 3) for share in shares],
        }
        print(f"{name:28}{rows[name]['images_per_cpu_second']:8.1f} images/CPU s {rows[name]['share_of_plain']:8.3f}")
    path = write("parts", {"batch": BATCH, "pixels": PIXELS, "rounds": options.rounds, "rows": rows})
    print(f"written to {path.name}")


if __name__ == "__main__":
    main()
