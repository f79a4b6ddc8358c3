"""What must be true before the first step: backends, data, and that this run is the one that its name says."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

from trainer.checkpoint.restore import Restored
from trainer.contract import RefusedError, RunEnv, UserError, run_key
from trainer.data.format import Copies, Index, read_index
from trainer.data.reading.split import PreparedSplit
from trainer.data.stage import stage
from trainer.learning.world import World, barrier
from trainer.recipes.config import Config, config_hash, differences, from_json, to_json
from trainer.recipes.named import default_data
from trainer.store import ObjectStore, explained, may_pass
from trainer.store.retry import patiently
from trainer.telemetry.status import Status


class Data:
    """The prepared images of a run; each (split, resolution) opens the smallest stored copy that serves it."""

    def __init__(self, folder: Path, index: Index):
        self.folder, self.index = folder, index
        self._opened = cache(lambda split, side: PreparedSplit(folder, index, split, side))

    def open(self, split: str, pixels: int) -> PreparedSplit:
        return self._opened(split, self.index.side_for(split, pixels))


def set_backends(config: Config) -> None:
    """Process-wide switches of torch, from the config."""
    torch.use_deterministic_algorithms(config.deterministic)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = not config.deterministic
    torch.set_float32_matmul_precision("high")  # TF32 where fp32 is asked for on a GPU that has it


def stage_data(config: Config, env: RunEnv, world: World, status: Status, tell: Callable[[str], None]) -> Data:
    """Prepared data on this machine: one process per machine fetches or makes it, the others wait and find it."""
    data = env.data or default_data(config.recipe)
    wanted = {"train": config.resolutions(), "val": frozenset({config.data.val_resize})}
    options: dict[str, Any] = {
        "copies": Copies(config.data.train_sides, (config.data.val_side,), config.data.quality),
        "wanted": wanted,
        "secrets_dir": env.secrets_dir, "progress": status.tick,
    }  # fmt: skip
    scratch = Path(env.scratch_dir).absolute()
    what = f"the data {data}, or the scratch folder {scratch},"

    def fetch() -> Path:
        with explained(what):  # OSError; what a store says goes through patiently
            return patiently(what, lambda: stage(data, scratch, **options), tell, worth_it=may_pass)

    if world.local_rank == 0:
        folder = fetch()
    barrier(world)
    if world.local_rank != 0:
        folder = fetch()
    found = Data(folder, read_index(folder))
    if (classes := len(found.index.classes)) != config.model.num_classes:
        raise UserError(
            f"--model.num-classes is {config.model.num_classes}, but {data!r} has {classes} classes: they must be "
            f"equal; pass --model.num-classes {classes}"
        )
    return found


def read_config(store: ObjectStore, run_id: str) -> dict[str, Any]:
    """The config that the run began with, as JSON."""
    config: dict[str, Any] = json.loads(store.get(run_key(run_id, "config.json")))
    return config


def check_config(before: dict[str, Any], run_id: str, config: Config) -> list[str]:
    """A run continues with the config that it began with; RefusedError shows the difference, unless it is asked for.

    Returns the differences.
    """
    changed = differences(from_json(Config, before), config)
    if changed and not config.checkpoint.accept_changes:
        raise RefusedError(
            f"run {run_id!r} was started with another config ({'; '.join(changed)}): repeat its options, "
            "or start a new run (RUN=another-name), or ask for the change: --checkpoint.accept-changes"
        )
    return changed


def check_data(restored: Restored, data: Data) -> None:
    """A run continues on the data that it began with, or RefusedError is raised."""
    before, now = restored.manifest["data"]["fingerprint"], data.index.fingerprint
    if before != now:
        raise RefusedError(
            f"the checkpoint {restored.key} was trained on data {before}, and {data.folder} is {now}: "
            "name the same data, or start a new run (RUN=another-name)"
        )


def git_commit() -> str:
    """The git commit of this code, and whether it was changed since: built into the image, asked of git elsewhere."""
    if found := os.environ.get("TRAINER_COMMIT"):
        return found
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def identity(config: Config, data: Data, env: RunEnv) -> dict[str, Any]:
    """What every checkpoint of this attempt says about its origin."""
    return {
        "run_id": env.run_id,
        "attempt": int(env.attempt),
        "config": to_json(config),
        "config_hash": config_hash(config),
        "data": {"name": data.index.name, "version": data.index.version, "fingerprint": data.index.fingerprint},
        "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__,
                     "numpy": np.__version__, "python": platform.python_version(), "commit": git_commit(),
                     "image": os.environ.get("TRAINER_IMAGE", "")},
    }  # fmt: skip
