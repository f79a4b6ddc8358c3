"""Weights to export: those of small networks that nobody trained, alone or as the checkpoint of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from tests.checkpoints import RUN, commit, owning
from trainer.contract import run_key
from trainer.learning.model import build_model
from trainer.model_card import CARD_FILE, ModelCard
from trainer.recipes.config import Config, DataConfig, ModelConfig
from trainer.recipes.fields import to_json
from trainer.scoring.members import Member
from trainer.store import ObjectStore, open_store

CLASSES = ("cat", "dog", "Zug")
SIDE = 32

BlurPool = Literal["none", "convs", "all"]


def card(network: str, blur_pool: BlurPool = "none", **changes: Any) -> ModelCard:
    given: dict[str, Any] = {
        "network": network, "classes": CLASSES, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3), "val_resize": 36,
        "val_crop": SIDE, "blur_pool": blur_pool, "recipe": "digits", "run_id": RUN, "step": 4, "weights": "model",
        "checkpoint_sha256": "0" * 64,
    }  # fmt: skip
    return ModelCard(**given | changes)


def random_model(network: str, blur_pool: BlurPool = "none") -> nn.Module:
    """In eval mode, with statistics of BatchNorm as after training: not zeros and ones."""
    torch.manual_seed(0)
    model = build_model(ModelConfig(name=network, num_classes=len(CLASSES), blur_pool=blur_pool))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for name in ("running_mean", "bias"):
                getattr(module, name).data.normal_(0, 0.1)
            for name in ("running_var", "weight"):
                getattr(module, name).data.uniform_(0.5, 1.5)
    return model.eval()


def member(network: str = "resnet18", blur_pool: BlurPool = "none", **changes: Any) -> Member:
    return Member("random", random_model(network, blur_pool), card(network, blur_pool, **changes))


def put_run(folder: Path, model: nn.Module, about: ModelCard) -> ObjectStore:
    """A store with a run whose only checkpoint has these weights."""
    (folder / "store").mkdir()
    store = open_store(str(folder / "store"))
    blur_pool: Any = about.blur_pool
    data = DataConfig(mean=about.mean, std=about.std, val_resize=about.val_resize, val_crop=about.val_crop)
    config = Config(model=ModelConfig(name=about.network, blur_pool=blur_pool), data=data)
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    with owning(store, 1, folder) as ownership:
        commit(ownership, about.step, tensors, config=to_json(config), counters={"best": {}})
    store.put(run_key(RUN, CARD_FILE), about.to_text().encode())
    return store
