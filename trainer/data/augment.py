"""What happens to a batch on the device: flip, normalise, mixup, cutmix. Pure functions of batch and generator."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.config import DataConfig, RegularizeConfig


@cache
def normalisation(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Of pixels in 0..255: two (3,) float32, kept on the device."""
    return torch.tensor(mean, device=device) * 255, torch.tensor(std, device=device) * 255


def to_input(images: Tensor, flips: Tensor, data: DataConfig) -> Tensor:
    """(N, H, W, 3) uint8 and (N,) bool to normalised (N, 3, H, W) float32, channels last in memory."""
    mean, std = normalisation(data.mean, data.std, images.device)
    images = torch.where(flips[:, None, None, None], images.flip(2), images)
    return ((images.float() - mean) / std).permute(0, 3, 1, 2)


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """(N,) int64 to (N, num_classes) float32: one form of target for plain and mixed batches."""
    return F.one_hot(labels, num_classes).float()


def mix(images: Tensor, targets: Tensor, reg: RegularizeConfig, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Mixup (arXiv:1710.09412) or cutmix (arXiv:1905.04899) of each image with its neighbour, or neither.

    images (N, 3, H, W), targets (N, classes); one share for the whole batch.
    """
    if not reg.mixup_alpha and not reg.cutmix_alpha:
        return images, targets
    cut = bool(reg.cutmix_alpha) and (not reg.mixup_alpha or rng.random() < 0.5)
    alpha = reg.cutmix_alpha if cut else reg.mixup_alpha
    share = float(rng.beta(alpha, alpha))
    partners = images.roll(1, 0)
    if cut:
        height, width = images.shape[2:]
        left, top, right, bottom = cut_box(rng, width, height, share)
        images = images.clone()
        images[:, :, top:bottom, left:right] = partners[:, :, top:bottom, left:right]
        share = 1 - (right - left) * (bottom - top) / (width * height)
    else:
        images = images.lerp(partners, 1 - share)
    return images, targets.lerp(targets.roll(1, 0), 1 - share)


def cut_box(rng: np.random.Generator, width: int, height: int, share: float) -> tuple[int, int, int, int]:
    """(left, top, right, bottom): a box of 1 - share of the area around a uniform centre, clipped at the borders."""
    x, y, half = int(rng.integers(width)), int(rng.integers(height)), 0.5 * math.sqrt(1 - share)
    w, h = int(half * width), int(half * height)
    return max(x - w, 0), max(y - h, 0), min(x + w, width), min(y + h, height)
