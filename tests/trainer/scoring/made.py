"""Runs that were never trained: prepared images, a config, a card and one checkpoint of random weights, in a store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.checkpoints import file_of
from tests.images import image_folder, prepared
from trainer.checkpoint.layout import CHECKPOINT_FORMAT
from trainer.contract import run_key
from trainer.data.format import Index
from trainer.learning.model import build_model
from trainer.model_card import CARD_FILE, card_of
from trainer.recipes.config import Config, DataConfig, ModelConfig
from trainer.recipes.fields import to_json
from trainer.store import ObjectStore, open_store
from trainer.store.checksum import Checksums
from trainer.upload.commit import Commit

NETWORK = "shufflenet_v2_x0_5"  # the smallest of torchvision's
CLASSES = ("ant", "bee", "cat", "dog")
CONFIG = Config(
    recipe="folder", precision="fp32", model=ModelConfig(name=NETWORK, num_classes=len(CLASSES)),
    data=DataConfig(
        resolution=32, start_resolution=32, val_resize=32, val_crop=32, train_sides=(32,), val_side=32, workers=1
    ),
)  # fmt: skip


def prepare_images(root: Path, *, classes: Sequence[str] = CLASSES, val: int = 4, side: int = 32) -> Index:
    """`val` images of each class, prepared in the store `root/store`."""
    folder = root / f"images-{len(list(root.iterdir()))}"
    return prepared(image_folder(folder, classes=classes, train=1, val=val, side=40), root / "store", side).index


def tensors(config: Config = CONFIG, *, seed: int = 0) -> dict[str, Tensor]:
    """Random weights whose answers differ between images."""
    torch.manual_seed(seed)
    model = build_model(config.model, initialise=True).train()
    with torch.no_grad():
        for _ in range(20):  # statistics of noise: else every image gets the same answer
            model(torch.randn(16, 3, 32, 32))
    return model.state_dict()


def put_run(
    root: Path, index: Index, run_id: str = "made", *, config: Config = CONFIG, seed: int = 0, step: int = 7,
    weights: dict[str, Tensor] | None = None, **card: Any,
) -> ObjectStore:  # fmt: skip
    """A run with one checkpoint, which is its best, in the store `root/store`. `card` changes fields of its card."""
    store = open_store(str(root / "store"))
    store.put(run_key(run_id, "config.json"), json.dumps(to_json(config)).encode())
    store.put(run_key(run_id, CARD_FILE), replace(card_of(config, index, run_id, ""), **card).to_text().encode())
    named = weights if weights is not None else tensors(config, seed=seed)
    body = file_of({f"model.{name}": tensor for name, tensor in named.items()})
    said = {
        "format": CHECKPOINT_FORMAT, "step": step, "time": 0.0, "run_id": run_id, "attempt": 1, "config_hash": "",
        "config": to_json(config), "data": {}, "versions": {},
        "counters": {"best": {"top1": 0.5, "step": step, "weights": "model"}},
    }  # fmt: skip
    Commit.of(run_id, 1, said, Checksums.of(body), {}).put(store, body)
    return store


def environment(root: Path, run_id: str = "made") -> dict[str, str]:
    """Where a command finds them."""
    return {
        "TRAINER_STORE": str(root / "store"), "TRAINER_SCRATCH_DIR": str(root / "scratch"), "TRAINER_RUN_ID": run_id,
        "TRAINER_DATA": "",
    }  # fmt: skip
