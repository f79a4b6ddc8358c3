"""Opens what is scored: a run's checkpoint, a file of weights, or torchvision's own weights, each as a Member."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trainer.contract import RUN_ID_RULE, UserError
from trainer.learning.model import build_model
from trainer.learning.places import Shapeless
from trainer.model_card import ModelCard
from trainer.recipes.config import ModelConfig
from trainer.scoring.weight_files import ENDINGS, Opened, head_size, open_torchvision, open_weight_file
from trainer.store import ObjectStore, open_store

Weights = Literal["auto", "model", "ema", "swa"]
STORED = re.compile(rf"(.+)/checkpoints/({RUN_ID_RULE})/data/step-0*(\d+)\.\d+\.safetensors")  # in a store of runs
TORCHVISIONS = re.compile(r"[A-Za-z0-9_]+_Weights\.\w+")


@dataclass(frozen=True, eq=False)
class Member:
    """One set of weights to score: (N, 3, H, W) in, (N, classes) logits out."""

    name: str  # as the user wrote it
    model: nn.Module  # in eval mode, fp32, on the CPU
    card: ModelCard


def open_member(name: str, store: ObjectStore, weights: Weights = "auto", network: str = "") -> Member:
    """What the user names, as one of these:

    - `digits`, a run of the store (its best checkpoint), `digits@newest`, `digits@1200`;
    - `ResNet50_Weights.IMAGENET1K_V2`, as torchvision writes it;
    - a file, or `s3://bucket/key`: what `make export` wrote, a checkpoint of a store, or anybody's state dict.

    `network` is torchvision's name for a file that does not say it; "" = what its tensors fit. Raises UserError,
    StoreError.
    """
    if TORCHVISIONS.fullmatch(name):
        tensors, card = open_torchvision(name)
    elif stored := STORED.fullmatch(name):
        tensors, card = open_stored(name, open_store(stored[1]), stored[2], stored[3], weights)
    elif "/" in name or name.endswith(ENDINGS):
        tensors, card = open_weight_file(name, weights, network)
    else:
        run_id, _, which = name.partition("@")
        if not re.fullmatch(RUN_ID_RULE, run_id):
            raise UserError(
                f"{name!r} is no run ({RUN_ID_RULE}), no file (./{name}) and none of torchvision's weights: write for "
                "example digits, ./digits.safetensors or ResNet50_Weights.IMAGENET1K_V2"
            )
        tensors, card = open_run(store, run_id, which or "best", weights)
    return Member(name, network_with(tensors, card), card)


def open_run(store: ObjectStore, run_id: str, which: str, weights: Weights) -> Opened:
    """The weights of a run's checkpoint, and its card. `which` is best, newest or a step. Raises UserError."""
    from trainer.checkpoint.export import choose_checkpoint, read_model_card, weights_of

    step = int(which) if which.isdecimal() else None
    if step is None and which not in ("best", "newest"):
        raise UserError(f"{run_id}@{which} names no checkpoint: use @best, @newest, or a step as @1200")
    key, manifest, sha256, _ = choose_checkpoint(store, run_id, which, step)
    kind, tensors = weights_of(store, key, manifest, weights)
    return tensors, read_model_card(store, run_id, manifest, kind, sha256)


def open_stored(name: str, store: ObjectStore, run_id: str, step: str, weights: Weights) -> Opened:
    """A checkpoint's file where the run keeps it: with the run's card, and checked against its manifest."""
    from trainer.checkpoint.line import Checkpoints
    from trainer.manifest import data_key

    chosen = data_key(Checkpoints.find(store, run_id).of_step(int(step), asked=name))
    if not name.endswith(chosen):
        raise UserError(f"{name!r} is beside the line of {run_id}, which has {chosen} for that step: name that one")
    return open_run(store, run_id, step, weights)


def network_with(tensors: dict[str, Tensor], card: ModelCard) -> nn.Module:
    """The network of a card with these weights, in eval mode. Raises UserError."""
    classes = head_size(tensors, card.network)
    blur_pool: Any = card.blur_pool
    with Shapeless():  # random weights would take longer than the true ones
        model = build_model(ModelConfig(name=card.network, num_classes=classes, blur_pool=blur_pool), initialise=False)
    own = model.state_dict()
    odd = [key for key in own.keys() ^ tensors.keys() if not key.endswith(".num_batches_tracked")]
    odd += [key for key in own.keys() & tensors.keys() if own[key].shape != tensors[key].shape]
    if odd:
        raise UserError(f"weights of {card.run_id or card.network} do not fit {card.network}: {', '.join(odd[:3])}, …")
    for key, tensor in own.items():  # `to_empty`, to be filled in place, would import sympy: a second
        whole = tensors.get(key, torch.zeros(()))
        own[key] = whole.to(tensor.dtype, memory_format=torch.contiguous_format, copy=True)
    model.load_state_dict(own, assign=True)
    return model.eval()


def check_same_classes(members: Sequence[Member]) -> None:
    """Raises UserError where members have other classes, or in another order: their outputs cannot be averaged."""
    first = members[0]
    for other in members[1:]:
        if first.card.classes and other.card.classes and first.card.classes != other.card.classes:
            raise UserError(
                f"{first.name!r} and {other.name!r} have other classes ({len(first.card.classes)} and "
                f"{len(other.card.classes)}), or in another order: score them one by one"
            )
