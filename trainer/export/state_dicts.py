"""Weights as safetensors: torchvision and timm load them with `strict=True`. Each library is asked before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torchvision
from torch import Tensor, nn

from trainer.checkpoint.layout import BLUR_POOL
from trainer.contract import UserError
from trainer.export.agreement import (
    SAME_LIBRARY,
    Difference,
    Sample,
    check_agreement,
    largest_difference,
    needs_package,
)
from trainer.export.preprocessing import metadata_of
from trainer.export.twins import TIMM_NAMES, why_not_timm, why_not_torchvision
from trainer.model_card import ModelCard
from trainer.scoring.members import Member


def write_torchvision(member: Member, sample: Sample, file: Path) -> Difference:
    """For torchvision's network of the same name. Returns the largest difference of logits. Raises UserError."""
    if reason := why_not_torchvision(member.card):
        raise UserError(f"--forms torchvision: {reason}")
    network = member.card.network
    return _write_tensors(
        member, sample, file, lambda: torchvision.models.get_model(network, weights=None, num_classes=sample.classes)
    )


def write_timm(member: Member, sample: Sample, file: Path) -> Difference:
    """For timm's network of the same name. Returns the largest difference of logits. Raises UserError."""
    if reason := why_not_timm(member.card):
        raise UserError(f"--forms timm: {reason}")
    try:
        import timm
    except ModuleNotFoundError as error:
        raise needs_package("timm", ("timm",)) from error
    name = TIMM_NAMES[member.card.network]
    return _write_tensors(member, sample, file, lambda: timm.create_model(name, num_classes=sample.classes))


def _write_tensors(member: Member, sample: Sample, file: Path, make: Callable[[], Any]) -> Difference:
    tensors = {name: tensor.contiguous() for name, tensor in member.model.state_dict().items()}
    safetensors.torch.save_file(tensors, file, metadata=metadata_of_tensors(member.card))
    model: nn.Module = make()
    model.load_state_dict(safetensors.torch.load_file(file), strict=True)
    answer: Callable[[Tensor], Tensor] = model.eval()
    difference = largest_difference(sample, answer)
    check_agreement(difference, SAME_LIBRARY, file.name)
    return difference


def metadata_of_tensors(card: ModelCard) -> dict[str, str]:
    """The metadata of a safetensors file: as `make checkpoints ARGS="export FILE"` writes, and the preprocessing."""
    about = {"format": "pt", "model": card.network, "run": card.run_id, "step": str(card.step), "weights": card.weights}
    return about | {"checkpoint_sha256": card.checkpoint_sha256, BLUR_POOL: card.blur_pool} | metadata_of(card)
