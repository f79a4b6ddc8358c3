"""Which images a step sees, and how each is cropped: pure functions of (seed, epoch, index). Nothing to restore.

World size, worker count and restarts change none of it. Pixels are not touched here.
"""

from __future__ import annotations

import math

import numpy as np

ORDER, CROP, MIX = range(3)  # streams of random numbers that never meet


def generator(stream: int, seed: int, major: int, minor: int = 0) -> np.random.Generator:
    """A counter-based generator (Philox), a function of its arguments: 64-bit seed, major < 2^24, minor < 2^36."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, stream << 60 | major << 36 | minor], np.uint64)))


def epoch_order(seed: int, epoch: int, images: int) -> np.ndarray:
    """A full random permutation of the training images: (images,) int64."""
    return generator(ORDER, seed, epoch).permutation(images)


def micro_batches(order: np.ndarray, step_in_epoch: int, accum: int, batch: int, rank: int, world: int) -> np.ndarray:
    """The images of one step for one rank: (accum, batch) int64. The union over ranks depends on the step alone."""
    size = accum * batch * world
    return order[step_in_epoch * size : (step_in_epoch + 1) * size].reshape(accum, world, batch)[:, rank]


def random_resized_crop(
    rng: np.random.Generator, width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """(left, top, width, height) with the distribution of torchvision's RandomResizedCrop.get_params."""
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1)), w, h
    w, h = width, height  # no crop fits: the centre, with the nearest allowed ratio
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (width - w) // 2, (height - h) // 2, w, h
