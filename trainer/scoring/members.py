"""Opens what is scored: a run's checkpoint, a file of weights, or torchvision's own weights, each as a Member."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torchvision
from torch import Tensor, nn

from trainer.checkpoint.export import choose_checkpoint, read_model_card, weights_of
from trainer.contract import RUN_ID_RULE, UserError
from trainer.learning.model import build_model
from trainer.model_card import ModelCard
from trainer.recipes.config import ModelConfig
from trainer.store import ObjectStore

Weights = Literal["auto", "model", "ema", "swa"]


@dataclass(frozen=True, eq=False)
class Member:
    """One set of weights to score: (N, 3, H, W) in, (N, classes) logits out."""

    name: str  # as the user wrote it
    model: nn.Module  # in eval mode, fp32, on the CPU
    card: ModelCard


def open_member(name: str, store: ObjectStore, weights: Weights = "auto") -> Member:
    """What the user names: `digits` (a run of the store, its best checkpoint), `digits@newest`, `digits@1200`.

    Raises UserError, StoreError.
    """
    run_id, _, which = name.partition("@")
    if not re.fullmatch(RUN_ID_RULE, run_id):
        raise UserError(f"{name!r} is not a run id: use {RUN_ID_RULE}, for example digits")
    tensors, card = open_run(store, run_id, which or "best", weights)
    return Member(name, network_with(tensors, card), card)


def open_run(store: ObjectStore, run_id: str, which: str, weights: Weights) -> tuple[dict[str, Tensor], ModelCard]:
    """The weights of a run's checkpoint, and its card. `which` is best, newest or a step. Raises UserError."""
    step = int(which) if which.isdecimal() else None
    key, manifest, sha256, _ = choose_checkpoint(store, run_id, which, step)
    kind, tensors = weights_of(store, key, manifest, weights)
    return tensors, read_model_card(store, run_id, manifest, kind, sha256)


def network_with(tensors: dict[str, Tensor], card: ModelCard) -> nn.Module:
    """The network of a card with these weights, in eval mode."""
    classes = head_size(tensors, card.network)
    blur_pool: Any = card.blur_pool
    config = ModelConfig(name=card.network, num_classes=classes, blur_pool=blur_pool)
    model = build_model(config, initialise=False)
    model.load_state_dict(tensors)
    return model.eval()


def head_size(tensors: dict[str, Tensor], network: str) -> int:
    """The number of outputs: of the last weight matrix in the network's own order."""
    names = torchvision.models.get_model(network, weights=None).state_dict()
    last = [name for name in names if name.endswith(".weight") and name in tensors and tensors[name].ndim > 1][-1]
    return len(tensors[last])


def check_same_classes(members: Sequence[Member]) -> None:
    """Raises UserError where members have other classes, or in another order: their outputs cannot be averaged."""
    first = members[0]
    for other in members[1:]:
        if first.card.classes and other.card.classes and first.card.classes != other.card.classes:
            raise UserError(
                f"{first.name!r} and {other.name!r} have other classes ({len(first.card.classes)} and "
                f"{len(other.card.classes)}), or in another order: score them one by one"
            )
