"""What every checkpoint says of its origin: the run, its config, its data, and the versions of what computed it."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

from trainer.contract import RunEnv
from trainer.data.format import Index
from trainer.recipes.config import Config
from trainer.recipes.fields import config_hash, to_json


def git_commit() -> str:
    """The git commit of this code, and whether it was changed since: built into the image, asked of git elsewhere."""
    if found := os.environ.get("TRAINER_COMMIT"):
        return found
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def identity(config: Config, index: Index, env: RunEnv) -> dict[str, Any]:
    """What every checkpoint of this attempt says about its origin."""
    return {
        "run_id": env.run_id,
        "attempt": int(env.attempt),
        "config": to_json(config),
        "config_hash": config_hash(config),
        "data": {"name": index.name, "version": index.version, "fingerprint": index.fingerprint,
                 "sha256": index.sha256, "commit": index.source.commit if index.source else ""},
        "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__,
                     "numpy": np.__version__, "python": platform.python_version(), "commit": git_commit(),
                     "image": os.environ.get("TRAINER_IMAGE", "")},
    }  # fmt: skip
