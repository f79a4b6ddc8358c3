"""Shears, shifts and rotations against torchvision's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import functional as transforms
from torchvision.transforms.v2 import InterpolationMode, RandAugment

from tests.trainer.data.augment.samples import samples, signed_magnitudes, theirs
from trainer.data.augment.geometry import GEOMETRIC, Manner, move

pytestmark = pytest.mark.slow

NEAREST, BILINEAR = Manner(bilinear=False, pil=False), Manner(bilinear=True, pil=False)


def moved(image: Tensor, name: str, magnitudes: np.ndarray, manner: Manner) -> Tensor:
    """(N, H, W, 3) uint8: the image after the operation with each magnitude."""
    kinds = np.full(len(magnitudes), GEOMETRIC.index(name))
    return move(image.expand(len(magnitudes), -1, -1, -1), kinds, magnitudes, manner)


@pytest.mark.parametrize("policy", ["trivial", "rand"])
@pytest.mark.parametrize("size", [(48, 48), (33, 40)])
@pytest.mark.parametrize("name", GEOMETRIC)
def test_geometry_is_that_of_torchvision_but_where_float32_cannot_tell_two_pixels_apart(
    name: str, size: tuple[int, int], policy: str
) -> None:
    """A source point on the border between two pixels belongs to either; torchvision's rounding picks one."""
    image = samples(*size)[5]  # noise: no two neighbours are alike
    magnitudes = np.array(list(signed_magnitudes(policy, name, *size)))
    found = moved(image, name, magnitudes, NEAREST)
    for mine, magnitude in zip(found, magnitudes, strict=True):
        x, y = source_points(name, magnitude, *size)
        clear = np.ones(size, np.bool_)
        for points in (x, y):
            clear &= abs(points - np.rint(points)) > 1e-4
        differs = (mine != theirs(image, name, magnitude)).any(2).numpy()
        assert not (differs & clear).any(), magnitude
        if name.startswith("Translate"):
            assert not differs.any()
        candidates = [pixels_at(image, x + dx, y + dy) for dx in (-1e-4, 1e-4) for dy in (-1e-4, 1e-4)]
        assert torch.stack([(mine == candidate).all(2) for candidate in candidates]).any(0).all(), magnitude


def source_points(name: str, magnitude: float, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y of where each pixel's centre comes from, by torchvision's formula in float64: (H, W) each."""
    y, x = np.mgrid[:height, :width] + 0.5
    match name:
        case "ShearX":
            return x + magnitude * y, y
        case "ShearY":
            return x, y + magnitude * x
        case "TranslateX":
            return x - int(magnitude), y
        case "TranslateY":
            return x, y - int(magnitude)
    a, b, _, c, d, _ = transforms._get_inverse_affine_matrix([0, 0], -magnitude, [0, 0], 1.0, [0.0, 0.0])
    x, y = x - width / 2, y - height / 2
    return a * x + b * y + width / 2, c * x + d * y + height / 2


def pixels_at(image: Tensor, x: np.ndarray, y: np.ndarray) -> Tensor:
    """The pixels that hold these points, 0 outside."""
    height, width = image.shape[:2]
    column, row = np.floor(x).astype(int), np.floor(y).astype(int)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    found = image.numpy()[row.clip(0, height - 1), column.clip(0, width - 1)]
    return torch.from_numpy(found * inside[..., None])


@pytest.mark.parametrize("policy", ["trivial", "rand"])
@pytest.mark.parametrize("name", GEOMETRIC)
def test_bilinear_geometry_is_that_of_torchvision_within_a_level(name: str, policy: str) -> None:
    """Its tensors' border blends with black. What is half-way between two levels may be rounded to either."""
    size, whole = (33, 40), RandAugment()
    image, magnitudes = samples(*size)[5], np.array(list(signed_magnitudes(policy, name, *size))[::5])
    found, differences = moved(image, name, magnitudes, BILINEAR), []
    for mine, magnitude in zip(found, magnitudes, strict=True):
        theirs = whole._apply_image_or_video_transform(
            image.movedim(-1, 0), name, magnitude, InterpolationMode.BILINEAR, {"others": None}
        )
        differences.append((mine.int() - theirs.movedim(0, -1).int()).abs())
    assert torch.stack(differences).max() <= 1
    assert torch.stack(differences).double().mean() < 0.01
    is_shift = name.startswith("Translate")  # by whole pixels
    assert torch.equal(found, moved(image, name, magnitudes, NEAREST)) == is_shift
