"""What happens to each image of a batch of uint8 images: TrivialAugment (arXiv:2103.10158) and RandAugment
(arXiv:1909.13719) with torchvision's operations, magnitudes and distribution, and RandAugment with timm's.

The host chooses what each image gets, so it knows the sizes of the groups and never waits for the device. The uniforms
come from the caller.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from trainer.data.augment.geometry import GEOMETRIC, Manner, move
from trainer.data.augment.pixels import PIXELWISE
from trainer.data.augment.transfer import Floats, Ints, to_device
from trainer.recipes.config import RegularizeConfig

OPERATIONS = ("Identity", *GEOMETRIC, *PIXELWISE)
TORCHVISION = OPERATIONS[:14]  # all but Invert and SolarizeAdd
TIMM = OPERATIONS[1:]
SIGNED = np.isin(OPERATIONS, [*GEOMETRIC, "Brightness", "Color", "Contrast", "Sharpness"])
BINS = 31  # torchvision's magnitudes per operation
TIMM_TOP, TIMM_PROBABILITY = 10.0, 0.5  # timm's greatest magnitude, and how often an operation happens
LEAST_DRAW = 2.0**-33  # half a step of the uniforms: the normal distribution has no value for 0


def policy_draws(reg: RegularizeConfig) -> int:
    """How many uniforms `apply_policy` takes for each image."""
    return (
        operation_draws(reg) * {"none": 0, "trivial": 1, "rand": reg.rand_ops, "timm_rand": reg.rand_ops}[reg.augment]
    )


def operation_draws(reg: RegularizeConfig) -> int:
    """Uniforms per operation: which one, its magnitude, its sign, and for timm's whether it happens."""
    return 4 if reg.augment == "timm_rand" else 3


def apply_policy(images: Tensor, draws: Floats, reg: RegularizeConfig, mean: tuple[float, float, float]) -> Tensor:
    """(N, H, W, 3) uint8 to the same in new memory. What happens to an image depends on its row of `draws` alone.

    draws: (N, policy_draws(reg)) float64 uniforms in [0, 1), on the host. Without a policy, the batch itself.
    mean: of pixels in 0..1, what timm fills with.
    """
    if reg.augment == "none":
        return images
    place, manner = np.arange(len(images)), manner_of(reg, mean)  # the present row of each image
    for ops, magnitudes in choose_operations(draws, reg, *images.shape[1:3]):
        order = np.argsort(ops, kind="stable")
        images = images.index_select(0, to_device(place[order], images.device))
        _apply_sorted(images, ops[order], magnitudes[order], manner)
        place = np.argsort(order)
    return images.index_select(0, to_device(place, images.device))


def manner_of(reg: RegularizeConfig, mean: tuple[float, float, float]) -> Manner:
    is_bilinear, is_timm = reg.interpolation == "bilinear", reg.augment == "timm_rand"
    red, green, blue = (min(255, round(255 * value)) if is_timm else 0 for value in mean)
    return Manner(is_bilinear, is_timm, (red, green, blue))


def choose_operations(draws: Floats, reg: RegularizeConfig, height: int, width: int) -> list[tuple[Ints, Floats]]:
    """For each turn, which of OPERATIONS each image gets and how strong: (N,) int64 and (N,) float64."""
    turns = draws.reshape(len(draws), -1, operation_draws(reg)).transpose(1, 2, 0)
    choose = choose_as_timm if reg.augment == "timm_rand" else choose_as_torchvision
    return [choose(turn, reg, height, width) for turn in turns]


def choose_as_torchvision(turn: Floats, reg: RegularizeConfig, height: int, width: int) -> tuple[Ints, Floats]:
    which, strength, sign = turn
    ops = (which * len(TORCHVISION)).astype(np.int64)
    bins = (strength * BINS).astype(np.int64) if reg.augment == "trivial" else reg.rand_magnitude
    signs = np.where((sign < 0.5) & SIGNED[ops], -1, 1)
    return ops, signs * magnitude_table(reg.augment, height, width)[ops, bins]


@cache
def magnitude_table(policy: str, height: int, width: int) -> Floats:
    """(TORCHVISION, BINS) float64, computed in float32 as there, where a shift by 15.999999 is one by 15."""
    wide = policy == "trivial"
    shear, angle, change, bits = (0.99, 135.0, 0.99, 6) if wide else (0.3, 30.0, 0.9, 4)
    shift_x, shift_y = (32.0, 32.0) if wide else (150 / 331 * width, 150 / 331 * height)
    table = torch.zeros(len(TORCHVISION), BINS)
    for row, top in enumerate((shear, shear, shift_x, shift_y, angle, change, change, change, change), start=1):
        table[row] = torch.linspace(0.0, top, BINS)
    table[TORCHVISION.index("Posterize")] = 8 - (torch.arange(BINS) / ((BINS - 1) / bits)).round()
    table[TORCHVISION.index("Solarize")] = torch.linspace(255.0, 0.0, BINS)
    return table.double().numpy()


def choose_as_timm(turn: Floats, reg: RegularizeConfig, height: int, width: int) -> tuple[Ints, Floats]:
    """The set whose severity rises with the magnitude (inc1). Magnitudes are normal, and clipped to 0 … TIMM_TOP."""
    which, happens, strength, sign = turn
    ops = np.where(happens < TIMM_PROBABILITY, 1 + (which * len(TIMM)).astype(np.int64), 0)
    normal = torch.special.ndtri(torch.from_numpy(np.clip(strength, LEAST_DRAW, 1 - LEAST_DRAW))).numpy()
    level = np.clip(reg.rand_magnitude + reg.rand_std * normal, 0, TIMM_TOP) / TIMM_TOP  # 0 … 1
    signed = np.where(sign < 0.5, -level, level)
    change = np.maximum(0.1, 1 + 0.9 * signed) - 1
    magnitudes = {
        "ShearX": 0.3 * signed,
        "ShearY": 0.3 * signed,
        "TranslateX": 0.45 * width * signed,
        "TranslateY": 0.45 * height * signed,
        "Rotate": 30 * signed,
        "Brightness": change,
        "Color": change,
        "Contrast": change,
        "Sharpness": change,
        "Posterize": 4 - np.trunc(4 * level),
        "Solarize": 256 - np.trunc(256 * level),
        "SolarizeAdd": np.trunc(110 * level),
    }
    table = np.stack([magnitudes.get(name, np.zeros_like(level)) for name in OPERATIONS])
    return ops, table[ops, np.arange(len(ops))]


def _apply_sorted(images: Tensor, ops: Ints, magnitudes: Floats, manner: Manner) -> None:
    """Change images in place that are sorted by operation: each operation gets one slice of the batch."""
    starts = np.searchsorted(ops, np.arange(len(OPERATIONS) + 1)).tolist()
    first = 1 + len(GEOMETRIC)
    if (start := starts[1]) < (stop := starts[first]):
        images[start:stop] = move(images[start:stop], ops[start:stop] - 1, magnitudes[start:stop], manner)
    strengths = to_device(magnitudes, images.device)[:, None, None, None]
    for operation, start, stop in zip(PIXELWISE.values(), starts[first:-1], starts[first + 1 :], strict=True):
        if start < stop:
            images[start:stop] = operation(images[start:stop], strengths[start:stop])
