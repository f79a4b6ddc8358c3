"""What every checkpoint says of its origin: the run, its config, its data, and the versions of what computed it.

A run goes on only as what it began as: its config and its data are compared with those of the checkpoint.
"""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

from trainer.checkpoint.restore import DamagedError, Restored, read_manifest
from trainer.contract import RefusedError, RunEnv, run_key
from trainer.data.format import INDEX, Index
from trainer.recipes.config import Config
from trainer.recipes.fields import config_hash, differences, from_json, to_json
from trainer.store import ObjectStore
from trainer.values import parse_object

ADD_SHA256 = f"delete {INDEX} where it was prepared, then run `make prepare` for it again"


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


def read_config(store: ObjectStore, run_id: str, newest: str) -> dict[str, Any]:
    """The config that the run's newest checkpoint was trained with, as JSON.

    `config.json` may be younger: it is that of the last start, which may have saved nothing.
    """
    try:
        config: dict[str, Any] = read_manifest(store, run_id, newest)["config"]
    except DamagedError:
        key = run_key(run_id, "config.json")
        try:
            config = parse_object(store.get(key))
        except ValueError as error:
            raise RefusedError(
                f"{store.describe(newest)} is damaged, and {store.describe(key)} is no config ({error}): put there the "
                "config of a manifest that is whole, which `make checkpoints` lists"
            ) from error
    return config


def check_config(before: dict[str, Any], run_id: str, config: Config) -> list[str]:
    """A run continues with the config that it began with; RefusedError shows the difference, unless it is asked for.

    Returns the differences. Before the data is there, 0 classes are no difference.
    """
    began = from_json(Config, before)
    if not config.model.num_classes:
        config = replace(config, model=replace(config.model, num_classes=began.model.num_classes))
    changed = differences(began, config)
    if changed and not config.checkpoint.accept_changes:
        raise RefusedError(
            f"run {run_id!r} was started with another config ({'; '.join(changed)}): repeat its options, "
            "or start a new run (RUN=another-name), or ask for the change: --checkpoint.accept-changes"
        )
    return changed


def lack_of(folder: Path, index: Index) -> str:
    """A line about shards without SHA-256; "" where all have it."""
    if index.sha256:
        return ""
    return (
        f"{folder} was prepared by an older version, without SHA-256: its shards are compared by CRC-32, "
        f"which finds accidents and no forgery; to add SHA-256, {ADD_SHA256}"
    )


def check_data(restored: Restored, folder: Path, index: Index) -> None:
    """A run continues on the data that it began with, or RefusedError is raised."""
    found = restored.manifest["data"]
    known_by = "sha256" if found.get("sha256") else "fingerprint"  # which older checkpoints have alone
    before, now = found.get(known_by, ""), getattr(index, known_by)
    if before != now:
        commit = found.get("commit", "")  # older checkpoints have none
        same = (
            f"name the same data (commit {commit} of the hub: DATA=<id>@{commit})" if commit else "name the same data"
        )
        raise RefusedError(
            f"the checkpoint {restored.key} was trained on data {before}, and {folder} is "
            f"{now or f'of an older version, without SHA-256 ({ADD_SHA256})'}: {same}, or start a new run "
            "(RUN=another-name)"
        )
