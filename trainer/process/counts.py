"""How many processes train on this machine, and what torch is told of its GPUs and cores. Standard library only."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
from typing import Any

from trainer.contract import UserError
from trainer.text import say

PROCESSES = "PET_NPROC_PER_NODE"  # torchrun's variable; NPROC= of make
GPU_COUNT = "TRAINER_GPUS"  # tells the trainer how many GPUs there are, so that it notices when torch cannot use one


def gpu_count() -> int:
    """How many GPUs the trainer will see; 0 without a driver. nvidia-smi tells: importing torch takes seconds."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    if shutil.which("nvidia-smi") is None:
        return 0
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines())


def torch_environ(recipe: dict[str, Any]) -> dict[str, str]:
    """Default variables for torchrun and torch. The user's own variables win.

    torchrun would give each process one OpenMP thread; on a CPU these defaults share out the cores instead.
    OpenMP threads spin while they wait, which starves the decoding threads. Measured with 2 busy neighbours on 2 cores:
    a ResNet-18 step takes 3 to 9 times as long with 300,000 spins, but not with 2,000, which cost an idle machine 1 %.
    """
    gpus = 0 if recipe["device"] == "cpu" else gpu_count()
    batches = recipe["global_batch_size"], recipe["device_batch_size"]
    if asked := os.environ.get(PROCESSES):
        processes = check_processes(asked, gpus, len(os.sched_getaffinity(0)), *batches)
    else:
        processes = process_count(gpus, *batches, int(os.environ.get("TRAINER_NODES") or 1))
    return {
        GPU_COUNT: str(gpus),
        "PET_STANDALONE": "1",
        PROCESSES: str(processes),
        "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // processes)),
        "GOMP_SPINCOUNT": "2000",
    }


def check_processes(asked: str, gpus: int, cores: int, global_batch_size: int, device_batch_size: int) -> int:
    """The number of processes that was asked for (NPROC=). Raises UserError where this machine or the batch has fewer
    places.
    """
    micro_batches = max(1, global_batch_size // device_batch_size)
    most, what = (gpus, "GPUs") if gpus else (cores, "cores")
    if not re.fullmatch("[1-9][0-9]{0,3}", asked):
        raise UserError(
            f"NPROC={asked} is no number of processes: write one from 1 to {most}, or leave it out for one process on "
            "each GPU"
        )
    if (count := int(asked)) > most:
        raise UserError(f"NPROC={count}: this machine has {most} {what}, and each process needs one: NPROC={most}")
    if count > micro_batches:
        raise UserError(
            f"NPROC={count}: a step has {micro_batches} micro-batches (--global-batch-size {global_batch_size} / "
            f"--device-batch-size {device_batch_size}), and each process computes one at least: NPROC={micro_batches}, "
            "or a smaller --device-batch-size"
        )
    return count


def process_count(gpus: int, global_batch_size: int, device_batch_size: int, nodes: int = 1) -> int:
    """How many processes each of `nodes` machines starts: one for each GPU, and 1 without any.

    Where micro-batches do not divide among all GPUs, the fewest processes that need as little time: the one with the
    most micro-batches decides. A message says so.
    """
    micro_batches = max(1, global_batch_size // device_batch_size)
    counts = range(1, max(1, min(gpus, micro_batches // nodes)) + 1)
    count = min(counts, key=lambda n: (math.ceil(micro_batches / (n * nodes)), n))
    if count < gpus:
        fits = [n for n in range(1, device_batch_size + 1) if global_batch_size % (n * gpus * nodes) == 0]
        say(
            f"using {count} of {gpus} GPUs: with the {micro_batches} micro-batches of a step (--global-batch-size "
            f"{global_batch_size} / --device-batch-size {device_batch_size}) more would not be faster"
            + (f"; --device-batch-size {fits[-1]} uses all" if fits else "")
        )
    return count
