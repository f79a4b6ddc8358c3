"""Images that policies are tried on, and what torchvision makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.autoaugment import _apply_op

from trainer.data.augment.policies import OPERATIONS, SIGNED, magnitude_table


@cache
def samples(height: int = 48, width: int = 41) -> Tensor:
    """(8, height, width, 3) uint8: photographs, grey, pale and dark ones, noise, a single value, and two values."""
    photographs = [image[200 : 200 + height, 300 : 300 + width] for image in load_sample_images().images]
    flower, temple = (torch.from_numpy(image.copy()) for image in photographs)
    noise = torch.randint(0, 256, flower.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    grey = temple.float().mean(2, keepdim=True).byte().expand(-1, -1, 3)
    single, two = torch.full_like(noise, 77), noise // 128 * 200
    return torch.stack([flower, temple, grey, flower // 8 + 200, temple // 16, noise, single, two])


def theirs(images: Tensor, name: str, magnitude: float) -> Tensor:
    """torchvision's operation on (…, H, W, 3) images."""
    return _apply_op(images.movedim(-1, -3), name, magnitude, InterpolationMode.NEAREST, None).movedim(-3, -1)


def signed_magnitudes(policy: str, name: str, height: int, width: int) -> Iterator[float]:
    op = OPERATIONS.index(name)
    for magnitude in magnitude_table(policy, height, width)[op]:
        yield from (magnitude, -magnitude) if SIGNED[op] else (magnitude,)


def assert_share(count: int, total: int, share: float) -> None:
    """Within five standard deviations of the binomial distribution."""
    assert abs(count - share * total) <= 5 * np.sqrt(total * share * (1 - share)), (count, total, share)
