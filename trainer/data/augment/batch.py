"""What happens to a batch on the device: flip, policy, normalise, erase, mixup, cutmix.

Each is a pure function of the batch and of random numbers from the caller. The policies are in `policies`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from trainer.data.augment.policies import apply_policy, policy_draws
from trainer.data.augment.transfer import Floats, Ints, to_device
from trainer.recipes.config import DataConfig, RegularizeConfig
from trainer.text import tell

ERASE_SCALE, ERASE_RATIO = (0.02, 0.33), (0.3, 3.3)  # torchvision's: share of the image's area, height over width
ERASE_TRIES = 10  # torchvision's: boxes that are drawn until one fits into the image


_NORMALISATIONS: dict[Any, tuple[Tensor, Tensor]] = {}  # a dict, since torch.compile does not look into functools.cache


def normalisation(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation of pixels in 0..255: two (3,) float32, kept on the device."""
    key = mean, std, device
    if key not in _NORMALISATIONS:
        with torch.inference_mode(False):  # a validation may be the first that asks, and training uses the same
            _NORMALISATIONS[key] = torch.tensor(mean, device=device) * 255, torch.tensor(std, device=device) * 255
    return _NORMALISATIONS[key]


def normalise(images: Tensor, data: DataConfig) -> Tensor:
    """(N, H, W, 3) uint8 to (N, 3, H, W) float32, channels last in memory."""
    mean, std = normalisation(data.mean, data.std, images.device)
    return ((images.float() - mean) / std).permute(0, 3, 1, 2)


def flip(images: Tensor, flips: Tensor) -> Tensor:
    """(N, H, W, 3) in new memory, with left and right exchanged where `flips`, (N,) bool, is true."""
    return torch.where(flips[:, None, None, None], images.flip(2), images)


def to_input(images: Tensor, flips: Tensor, data: DataConfig, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """(N, H, W, 3) uint8 and (N,) bool to normalised (N, 3, H, W), channels last in memory, computed in float32.

    On a GPU one kernel does it. Compiled code gets torch's lines, since the compiler makes one kernel of them anyway.
    """
    if images.is_cuda and not torch.compiler.is_compiling() and (fused := fused_kernel()) is not None:
        return fused(images, flips, *normalisation(data.mean, data.std, images.device), dtype)
    return normalise(flip(images, flips), data).to(dtype)


Fused: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor, torch.dtype], Tensor]


@cache
def fused_kernel() -> Fused | None:
    """`kernel.flip_and_normalise` where it works, once tried on one pixel. Where it does not, a line says why."""
    if not torch.cuda.is_available():
        return None
    try:
        from trainer.data.augment.kernel import flip_and_normalise

        pixel = torch.zeros(1, 1, 1, 3, dtype=torch.uint8, device="cuda")
        ones = torch.ones(3, device="cuda")
        flip_and_normalise(pixel, torch.ones(1, dtype=torch.bool, device="cuda"), ones, ones, torch.float32)
    except Exception as error:  # noqa: BLE001  # Triton is not there, has no C compiler, no folder for its cache, …
        why = f"{type(error).__name__}: {error}"
        tell(f"images are normalised by torch, in six kernels instead of one: Triton does not work ({why})", sys.stderr)
        return None
    return flip_and_normalise


def to_augmented_input(images: Tensor, flips: Tensor, draws: Floats, data: DataConfig, reg: RegularizeConfig) -> Tensor:
    """`to_input` in float32 with the policy and the erasing that `reg` asks for, in torchvision's order.

    draws: (N, draws_per_image(reg)) float64 uniforms in [0, 1), on the host.
    """
    for_policy, for_erasing = np.hsplit(draws, [policy_draws(reg)])
    if policy_draws(reg):
        images = normalise(apply_policy(flip(images, flips), for_policy, reg, data.mean), data)
    else:
        images = to_input(images, flips, data)
    return erase(images, for_erasing, reg)


def draws_per_image(reg: RegularizeConfig) -> int:
    """How many uniforms `to_augmented_input` takes for each image: 0 if nothing is random."""
    return policy_draws(reg) + (3 + 2 * ERASE_TRIES if reg.erasing_probability else 0)


def erase(images: Tensor, draws: Floats, reg: RegularizeConfig) -> Tensor:
    """Random erasing (arXiv:1708.04896): fill a box of some images with 0, the mean of normalised pixels.

    images (N, 3, H, W); draws (N, 3 + 2 ERASE_TRIES) float64 uniforms in [0, 1), on the host.
    """
    if not reg.erasing_probability:
        return images
    height, width = images.shape[2:]
    left, top, right, bottom = to_device(erasing_boxes(draws, reg, width, height), images.device)[:, :, None]
    x, y = torch.arange(width, device=images.device), torch.arange(height, device=images.device)
    columns, rows = (left <= x) & (x < right), (top <= y) & (y < bottom)  # (N, W), (N, H)
    return torch.where((rows[:, :, None] & columns[:, None, :])[:, None], 0.0, images)  # keeps channels last


def erasing_boxes(draws: Floats, reg: RegularizeConfig, width: int, height: int) -> Ints:
    """(4, N) int64: left, top, right, bottom, drawn as in torchvision's RandomErasing. An empty box erases nothing."""
    (happens, x, y), tries = draws.T[:3], draws.T[3:]
    low, high = np.log(ERASE_RATIO)
    areas = (ERASE_SCALE[0] + (ERASE_SCALE[1] - ERASE_SCALE[0]) * tries[:ERASE_TRIES]) * (width * height)
    ratios = np.exp(low + (high - low) * tries[ERASE_TRIES:])
    w, h = np.rint(np.sqrt(areas / ratios)), np.rint(np.sqrt(areas * ratios))  # (tries, N)
    fits = (w < width) & (h < height)
    chosen = fits.argmax(0), np.arange(len(draws))  # the first that fits
    erased = (happens < reg.erasing_probability) & fits.any(0)
    w, h = np.where(erased, w[chosen], 0), np.where(erased, h[chosen], 0)
    left, top = np.floor(x * (width - w + 1)), np.floor(y * (height - h + 1))
    return np.stack([left, top, left + w, top + h]).astype(np.int64)


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """(N,) int64 to (N, num_classes) float32: plain and mixed batches have the same form of target."""
    return torch.zeros(len(labels), num_classes, device=labels.device).scatter_(1, labels[:, None], 1.0)


def mix(images: Tensor, targets: Tensor, reg: RegularizeConfig, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Mixup (arXiv:1710.09412) or cutmix (arXiv:1905.04899) of each image with its neighbour, or neither.

    images (N, 3, H, W), targets (N, classes); one share for the whole batch.
    """
    if not reg.mixup_alpha and not reg.cutmix_alpha:
        return images, targets
    cut = bool(reg.cutmix_alpha) and (not reg.mixup_alpha or rng.random() < 0.5)
    alpha = reg.cutmix_alpha if cut else reg.mixup_alpha
    share = float(rng.beta(alpha, alpha))
    partners = torch.cat((images[-1:], images[:-1]))  # roll would lose channels last on a GPU
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
