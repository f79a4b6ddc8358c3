"""The operations of a policy that move an image's pixels: one affine map for each image.

A map goes from a pixel of the result to its source, in pixels from the top left corner: a pixel's centre is half a
pixel from its corner. The images are (n, H, W, 3) uint8.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.data.augment.transfer import Floats, Ints, to_device

GEOMETRIC = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
NEARLY = 1e-3  # PIL cuts fractions off, and computes in float64: what float32 gives may lie below a whole level


@dataclass(frozen=True)
class Manner:
    """How the library of a policy moves an image."""

    bilinear: bool  # else the nearest pixel
    pil: bool  # as PIL: shifts by parts of a pixel, a sharp border, fractions of a level cut off. Else torchvision
    fill: tuple[int, int, int] = (0, 0, 0)  # what lies outside


def move(images: Tensor, kinds: Ints, magnitudes: Floats, manner: Manner) -> Tensor:
    """The images in new memory, each moved by its operation, a number in GEOMETRIC, and its magnitude."""
    height, width = images.shape[1:3]
    matrices = inverse_matrices(kinds, magnitudes, height, width, whole_shifts=not manner.pil)
    points = source_points(to_device(matrices, images.device), height, width)
    if not manner.bilinear:
        return nearest_pixels(images, *points, manner.fill)
    return blended_in_pil(images, *points, manner.fill) if manner.pil else blended(images, *points)


def inverse_matrices(kinds: Ints, magnitudes: Floats, height: int, width: int, *, whole_shifts: bool) -> Floats:
    """(N, 2, 3) float64. A shift is a number of pixels, cut to a whole one if `whole_shifts`."""
    matrices = np.tile(np.eye(2, 3), (len(kinds), 1, 1))

    def is_op(name: str) -> npt.NDArray[np.bool_]:
        return np.asarray(kinds == GEOMETRIC.index(name))

    shifts = np.trunc(magnitudes) if whole_shifts else magnitudes
    matrices[:, 0, 1] = np.where(is_op("ShearX"), magnitudes, 0)  # around the corner, as both libraries do
    matrices[:, 1, 0] = np.where(is_op("ShearY"), magnitudes, 0)
    matrices[:, 0, 2] = np.where(is_op("TranslateX"), -shifts, 0)
    matrices[:, 1, 2] = np.where(is_op("TranslateY"), -shifts, 0)
    rotated, centre = is_op("Rotate"), np.array([width / 2, height / 2])
    radians = np.radians(magnitudes[rotated])
    cos, sin = np.cos(radians), np.sin(radians)
    rotation = np.stack([cos, -sin, sin, cos], axis=1).reshape(-1, 2, 2)
    matrices[rotated] = np.concatenate([rotation, (centre - rotation @ centre)[:, :, None]], axis=2)
    return matrices


def source_points(matrices: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """x and y of where each pixel's centre comes from: (N, H, W) float64 each."""
    xs = torch.arange(width, device=matrices.device, dtype=torch.float64) + 0.5
    ys = torch.arange(height, device=matrices.device, dtype=torch.float64) + 0.5
    across, down = matrices[:, :, :1] * xs, matrices[:, :, 1:2] * ys + matrices[:, :, 2:]  # (N, 2, W), (N, 2, H)
    x, y = (across[:, i, None, :] + down[:, i, :, None] for i in range(2))
    return x, y


def is_inside(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """(N, H, W) bool."""
    height, width = images.shape[1:3]
    return (x >= 0) & (x < width) & (y >= 0) & (y < height)


def nearest_pixels(images: Tensor, x: Tensor, y: Tensor, fill: tuple[int, int, int]) -> Tensor:
    """Take the nearest pixel, and `fill` outside. float64 keeps the border between two pixels exact."""
    n, height, width, channels = images.shape
    x, y = x.floor_().int(), y.floor_().int()
    inside = is_inside(images, x, y)
    first = torch.arange(0, n * height * width, height * width, device=images.device)[:, None, None]
    sources = y.mul_(width).add_(x).add(first).mul_(inside)  # int64, row of the batch's pixels
    moved = images.reshape(-1, channels).index_select(0, sources.view(-1)).view(images.shape)
    return fill_outside(moved, inside, fill)


def blended(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Between four pixels, as torchvision's tensors: outside is black, and the border blends with it."""
    return grid_sample(images, x, y, "zeros").round_().byte()


def blended_in_pil(images: Tensor, x: Tensor, y: Tensor, fill: tuple[int, int, int]) -> Tensor:
    """Between four pixels, as PIL: the border blends with nothing, and fractions of a level are cut off."""
    moved = grid_sample(images, x, y, "border").add_(NEARLY).byte()
    return fill_outside(moved, is_inside(images, x, y), fill)


def grid_sample(images: Tensor, x: Tensor, y: Tensor, padding: str) -> Tensor:
    """(N, H, W, 3) float32 in 0..255."""
    height, width = images.shape[1:3]
    grid = torch.stack([x * (2 / width) - 1, y * (2 / height) - 1], dim=-1).float()
    planes = images.permute(0, 3, 1, 2).contiguous().float()  # faster than in place
    return F.grid_sample(planes, grid, "bilinear", padding, align_corners=False).permute(0, 2, 3, 1)


def fill_outside(moved: Tensor, inside: Tensor, fill: tuple[int, int, int]) -> Tensor:
    moved.mul_(inside[..., None])
    return moved.add_((~inside)[..., None] * fill_color(fill, moved.device)) if any(fill) else moved


@cache
def fill_color(values: tuple[int, int, int], device: torch.device) -> Tensor:
    """(3,) uint8, kept on the device."""
    return torch.tensor(values, dtype=torch.uint8, device=device)
