"""A finished run to release: a random ResNet-18 of 10 classes of ImageNet, with all that a run leaves in its store."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torchvision

from tests.checkpoints import RUN, commit, owning
from trainer.contract import manifest_key, metrics_key, run_key
from trainer.imagenet import wnids
from trainer.model_card import CARD_FILE, card_of_config
from trainer.recipes.config import Config, DataConfig, ModelConfig
from trainer.recipes.fields import to_json
from trainer.release.__main__ import main
from trainer.store import ObjectStore, open_store
from trainer.telemetry.metrics import start_row

NAME = "somebody/tiny"  # on the hub
STEP, TOP1, TOP5 = 8, 0.8125, 0.9875
FINGERPRINT = "ab" * 32
CONFIG = Config(
    recipe="digits", model=ModelConfig(name="resnet18", num_classes=10),
    data=DataConfig(val_resize=36, val_crop=32, resolution=32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25)),
)  # fmt: skip

SMALL = replace(CONFIG, model=ModelConfig(name="squeezenet1_1", num_classes=10))  # a hundredth of the time


def make_store(folder: Path, config: Config = CONFIG) -> ObjectStore:
    """A store with the run RUN: its best checkpoint is that of STEP, of the average."""
    store = open_store(str(folder / "out"))
    put_outcome(store, RUN, config)
    put_checkpoint(store, folder / "machine", config)
    card = replace(
        card_of_config(to_json(config), RUN), classes=wnids()[:10], commit="c" * 40,
        data={"name": "tiny-imagenet", "version": "v1", "fingerprint": FINGERPRINT},
    )  # fmt: skip
    store.put(run_key(RUN, CARD_FILE), card.to_text().encode())
    rows = [start_row(1, 0, 0), {"step": STEP, "time": 1.0, "val_ema/top1": TOP1, "val_ema/top5": TOP5}]
    key = metrics_key(RUN, 1, f"{0:08d}-{STEP:08d}.jsonl")
    store.put(key, "".join(json.dumps(row) + "\n" for row in rows).encode())
    return store


def put_outcome(store: ObjectStore, run_id: str, config: Config, top1: float = TOP1) -> None:
    """What `make compare` reads of a finished run."""
    body = {
        "recipe": config.recipe, "steps": STEP, "epochs": 2, "seconds": 5400.0, "images_per_second": 1234.5,
        "best": {"top1": top1, "step": STEP, "weights": "ema"}, "last": {"val_ema/top1": top1},
        "checkpoint": manifest_key(run_id, STEP, 1),
    }  # fmt: skip
    store.put(run_key(run_id, "config.json"), json.dumps(to_json(config)).encode())
    store.put(run_key(run_id, "result.json"), json.dumps(body).encode())


def put_checkpoint(store: ObjectStore, machine: Path, config: Config, seed: int = 0) -> None:
    machine.mkdir(parents=True)
    torch.manual_seed(seed)
    tensors = torchvision.models.get_model(config.model.name, num_classes=10).state_dict()
    state = {f"{kind}.{name}": tensor for kind in ("model", "ema") for name, tensor in tensors.items()}
    with owning(store, 1, machine) as ownership:
        commit(
            ownership, STEP, state, is_best=True, config=to_json(config), data={"fingerprint": FINGERPRINT},
            counters={"best": {"top1": TOP1, "step": STEP, "weights": "ema"}},
        )  # fmt: skip


def put_evaluation(
    store: ObjectStore, file: str, model: dict[str, Any], scores: dict[str, float], views: str = "none"
) -> None:
    """As `make evaluate` does."""
    data = {"name": "tiny-imagenet"}
    record = {"format": 1, "model": model, "data": data, "scores": scores, "views": {"name": views}}
    store.put(run_key(RUN, f"evaluations/{file}.json"), json.dumps(record).encode())


def release(store: ObjectStore, folder: Path, *arguments: str, models: str = RUN) -> int:
    return main([models, "--store", store.uri, "--to", str(folder), *arguments])


def push(store: ObjectStore, folder: Path, *arguments: str, name: str = NAME) -> int:
    forms = () if folder.exists() else ("--forms", "torchvision")
    return main([RUN, "--store", store.uri, "--to", str(folder), "--push", name, *forms, *arguments])
