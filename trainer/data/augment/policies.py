"""TrivialAugment (arXiv:2103.10158) and RandAugment (arXiv:1909.13719) of a whole batch of uint8 images.

Operations, magnitudes and their distribution are torchvision's. The host chooses what each image gets, so it knows the
sizes of the groups and never waits for the device. The uniforms come from the caller.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainer.recipes.config import RegularizeConfig

Ints: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]
BINS = 31  # magnitudes per operation
OPERATION_DRAWS = 3  # uniforms per operation: which one, its magnitude, its sign


def policy_draws(reg: RegularizeConfig) -> int:
    """How many uniforms `apply_policy` takes for each image."""
    return OPERATION_DRAWS * {"none": 0, "trivial": 1, "rand": reg.rand_ops}[reg.augment]


def apply_policy(images: Tensor, draws: Floats, reg: RegularizeConfig) -> Tensor:
    """(N, H, W, 3) uint8 to the same in new memory. What happens to an image depends on its row of `draws` alone.

    draws: (N, policy_draws(reg)) float64 uniforms in [0, 1), on the host. Without a policy, the batch itself.
    """
    if reg.augment == "none":
        return images
    place = np.arange(len(images))  # the present row of each image
    for ops, magnitudes in choose_operations(draws, reg, *images.shape[1:3]):
        order = np.argsort(ops, kind="stable")
        images = images.index_select(0, to_device(place[order], images.device))
        _apply_sorted(images, ops[order], magnitudes[order])
        place = np.argsort(order)
    return images.index_select(0, to_device(place, images.device))


def choose_operations(draws: Floats, reg: RegularizeConfig, height: int, width: int) -> list[tuple[Ints, Floats]]:
    """For each turn, which of OPERATIONS each image gets and how strong: (N,) int64 and (N,) float64."""
    chosen = []
    for which, strength, sign in draws.reshape(len(draws), -1, OPERATION_DRAWS).transpose(1, 2, 0):
        ops = (which * len(OPERATIONS)).astype(np.int64)
        bins = (strength * BINS).astype(np.int64) if reg.augment == "trivial" else reg.rand_magnitude
        signs = np.where((sign < 0.5) & SIGNED[ops], -1, 1)
        chosen.append((ops, signs * magnitude_table(reg.augment, height, width)[ops, bins]))
    return chosen


@cache
def magnitude_table(policy: str, height: int, width: int) -> Floats:
    """(operations, BINS) float64, computed in float32 as in torchvision, where a shift by 15.999999 is one by 15."""
    wide = policy == "trivial"
    shear, angle, change, bits = (0.99, 135.0, 0.99, 6) if wide else (0.3, 30.0, 0.9, 4)
    shift_x, shift_y = (32.0, 32.0) if wide else (150 / 331 * width, 150 / 331 * height)
    table = torch.zeros(len(OPERATIONS), BINS)
    for row, top in enumerate((shear, shear, shift_x, shift_y, angle, change, change, change, change), start=1):
        table[row] = torch.linspace(0.0, top, BINS)
    table[OPERATIONS.index("Posterize")] = 8 - (torch.arange(BINS) / ((BINS - 1) / bits)).round()
    table[OPERATIONS.index("Solarize")] = torch.linspace(255.0, 0.0, BINS)
    return table.double().numpy()


def _apply_sorted(images: Tensor, ops: Ints, magnitudes: Floats) -> None:
    """Change images in place that are sorted by operation: each operation gets one slice of the batch."""
    starts = np.searchsorted(ops, np.arange(len(OPERATIONS) + 1)).tolist()
    first = 1 + len(GEOMETRIC)
    if (start := starts[1]) < (stop := starts[first]):
        matrices = inverse_matrices(ops[start:stop], magnitudes[start:stop], *images.shape[1:3])
        images[start:stop] = warp(images[start:stop], to_device(matrices, images.device))
    strengths = to_device(magnitudes, images.device)[:, None, None, None]
    for operation, start, stop in zip(PIXELWISE.values(), starts[first:-1], starts[first + 1 :], strict=True):
        if start < stop:
            images[start:stop] = operation(images[start:stop], strengths[start:stop])


def to_device(array: Ints | Floats, device: torch.device) -> Tensor:
    """Copy without waiting for a GPU: the allocator keeps the pinned memory until the copy is done."""
    host = torch.from_numpy(array)
    return (host.pin_memory() if device.type == "cuda" else host).to(device, non_blocking=True)


# Geometry: one affine map for each image, from a pixel of the result to its source in the image.


def inverse_matrices(ops: Ints, magnitudes: Floats, height: int, width: int) -> Floats:
    """(N, 2, 3) float64, in pixels from the top left corner: a pixel's centre is half a pixel from its corner."""
    matrices = np.tile(np.eye(2, 3), (len(ops), 1, 1))

    def is_op(name: str) -> npt.NDArray[np.bool_]:
        return np.asarray(ops == OPERATIONS.index(name))

    matrices[:, 0, 1] = np.where(is_op("ShearX"), magnitudes, 0)  # around the corner, as torchvision does
    matrices[:, 1, 0] = np.where(is_op("ShearY"), magnitudes, 0)
    matrices[:, 0, 2] = np.where(is_op("TranslateX"), -np.trunc(magnitudes), 0)
    matrices[:, 1, 2] = np.where(is_op("TranslateY"), -np.trunc(magnitudes), 0)
    rotated, centre = is_op("Rotate"), np.array([width / 2, height / 2])
    radians = np.radians(magnitudes[rotated])
    cos, sin = np.cos(radians), np.sin(radians)
    rotation = np.stack([cos, -sin, sin, cos], axis=1).reshape(-1, 2, 2)
    matrices[rotated] = np.concatenate([rotation, (centre - rotation @ centre)[:, :, None]], axis=2)
    return matrices


def warp(images: Tensor, matrices: Tensor) -> Tensor:
    """Take the nearest pixel, and 0 outside. float64 keeps the border between two pixels exact."""
    n, height, width, channels = images.shape
    xs = torch.arange(width, device=images.device, dtype=torch.float64) + 0.5
    ys = torch.arange(height, device=images.device, dtype=torch.float64) + 0.5
    across, down = matrices[:, :, :1] * xs, matrices[:, :, 1:2] * ys + matrices[:, :, 2:]  # (N, 2, W), (N, 2, H)
    x, y = ((across[:, i, None, :] + down[:, i, :, None]).floor_().int() for i in range(2))  # (N, H, W)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    first = torch.arange(0, n * height * width, height * width, device=images.device)[:, None, None]
    sources = y.mul_(width).add_(x).add(first).mul_(inside)  # int64, row of the batch's pixels
    moved = images.reshape(-1, channels).index_select(0, sources.view(-1)).view(images.shape)
    return moved.mul_(inside[..., None])


# Pixels: (n, H, W, 3) uint8 and (n, 1, 1, 1) float64 magnitudes to uint8, rounding where torchvision rounds.


def blend(images: Tensor, other: Tensor | float, magnitudes: Tensor) -> Tensor:
    """`other` at magnitude -1, the images at 0, and beyond them at 1."""
    share = 1 + magnitudes
    return (share.float() * images).add_((1 - share).float() * other).clamp_(0, 255).byte()


def grey(images: Tensor) -> Tensor:
    """(n, H, W, 1) uint8."""
    r, g, b = images[..., :1], images[..., 1:2], images[..., 2:]
    return (0.2989 * r).add_(0.587 * g).add_(0.114 * b).byte()


def brightness(images: Tensor, magnitudes: Tensor) -> Tensor:
    return blend(images, 0.0, magnitudes)


def color(images: Tensor, magnitudes: Tensor) -> Tensor:
    return blend(images, grey(images), magnitudes)


def contrast(images: Tensor, magnitudes: Tensor) -> Tensor:
    # A sum of integers. In float32 it would depend on the order, and so on the device and the size of the group.
    total = grey(images).sum((1, 2, 3), keepdim=True)
    return blend(images, (total.double() / (images.shape[1] * images.shape[2])).float(), magnitudes)


def sharpness(images: Tensor, magnitudes: Tensor) -> Tensor:
    """Away from or towards the mean of nine pixels, where the middle one counts five times. The border stays."""
    wide = images.short()  # holds 13 x 255
    rows = wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]
    total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * wide[:, 1:-1, 1:-1]
    blurred = images.float()
    blurred[:, 1:-1, 1:-1] = (total / 13).round_()
    return blend(images, blurred, magnitudes)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    shift = (8 - bits).byte()
    return images >> shift << shift


def solarize(images: Tensor, thresholds: Tensor) -> Tensor:
    return images ^ (images >= thresholds.ceil().byte()).byte().mul_(255)  # v ^ 255 is 255 - v


def autocontrast(images: Tensor, _: Tensor) -> Tensor:
    """Stretch every channel to 0 … 255. A channel with a single value stays."""
    low, high = images.amin(1).amin(1)[:, None, None], images.amax(1).amax(1)[:, None, None]
    flat = low == high
    scale = 255 / torch.where(flat, 255, high - low).float()
    return (images - torch.where(flat, 0, low).float()).mul_(scale).clamp_(0, 255).byte()


def equalize(images: Tensor, _: Tensor) -> Tensor:
    """Give every channel the most even histogram that a table of 256 values allows."""
    n, _height, _width, channels = images.shape
    tables = torch.arange(0, n * channels * 256, 256, device=images.device).view(n, 1, 1, channels)
    entries = (images + tables).view(-1)  # of each pixel's value, in the table of its image and channel
    # bincount waits for a GPU, and deterministic runs refuse histc. A sum of integers does not depend on the order.
    ones = torch.ones((), dtype=torch.int64, device=images.device).expand(entries.shape)
    histogram = torch.zeros(n * channels * 256, dtype=torch.int64, device=images.device)
    histogram = histogram.scatter_add_(0, entries, ones).view(-1, 256)
    upto = histogram.cumsum(1)
    step = torch.where(upto < upto[:, -1:], upto, 0).amax(1, keepdim=True) // 255  # of all but the brightest value
    table = ((upto - histogram + step // 2) // step.clamp(min=1)).clamp_(0, 255)
    same = torch.arange(256, device=images.device)
    table = torch.where(step > 0, table, same).byte()
    return table.view(-1).index_select(0, entries).view(images.shape)


GEOMETRIC = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
PIXELWISE: MappingProxyType[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {
        "Brightness": brightness,
        "Color": color,
        "Contrast": contrast,
        "Sharpness": sharpness,
        "Posterize": posterize,
        "Solarize": solarize,
        "AutoContrast": autocontrast,
        "Equalize": equalize,
    }
)
OPERATIONS = ("Identity", *GEOMETRIC, *PIXELWISE)
SIGNED = np.isin(OPERATIONS, [*GEOMETRIC, "Brightness", "Color", "Contrast", "Sharpness"])
