"""Which images a step sees, and how each is cropped: pure functions of the seed, the epoch and the labels.

World size, worker count and restarts change none of it, so nothing is restored. Pixels are not touched here.

An epoch is a list of visits. A visit is the number of an image, plus 2^32 for each earlier visit in the epoch. So the
visits of an image draw different numbers, and where every image comes once, its visit is its number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from trainer.recipes.config import Config

ORDER, CROP, MIX, AUGMENT = range(4)  # independent streams of random numbers

ATTEMPTS = 10  # crops that are drawn, as in torchvision, until one fits
CROP_DRAWS = 1 + 4 * ATTEMPTS  # for each image: one for the flip, then area, aspect, left, top of every attempt
INDEX_BITS, STREAM_BITS = 32, 8


def generator(stream: int, seed: int, major: int, minor: int = 0) -> np.random.Generator:
    """A counter-based generator (Philox), a function of its arguments: 64-bit seed, major < 2^24, minor < 2^36."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, stream << 60 | major << 36 | minor], np.uint64)))


def draws(stream: int, seed: int, epoch: int, visits: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.float64]:
    """(N, count) uniform numbers in [0, 1), of 32 bits; each row a function of (stream, seed, epoch, its visit)."""
    blocks = np.arange(-(-count // 4), dtype=np.uint64)
    index, earlier = (
        np.repeat(part.astype(np.uint64), len(blocks)) for part in (image_of(visits), visits_before(visits))
    )
    same_epoch, streams = np.full_like(index, epoch), np.uint64(stream) | earlier << np.uint64(STREAM_BITS)
    counters = np.stack([index, np.tile(blocks, len(visits)), same_epoch, streams])
    words = philox(seed, counters).T.reshape(len(visits), -1)[:, :count]
    return words.astype(np.float64) * 2.0**-32


def philox(key: int, counter: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Philox4x32-10 (Salmon et al., SC 2011): (4, N) counters of 32 bits to as many random words; 64-bit key.

    numpy's own generator takes one counter at a time, which costs more than half of the decoding of a small image.
    """
    mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    c0, c1, c2, c3 = counter
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (p1 >> half) ^ c1 ^ np.uint64(k0), p1 & mask, (p0 >> half) ^ c3 ^ np.uint64(k1), p0 & mask
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3])


def image_of(visits: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The number of each visit's image."""
    return visits & ((1 << INDEX_BITS) - 1)


def visits_before(visits: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How often the image of each visit has come before in the epoch."""
    return visits >> INDEX_BITS


def epoch_visits(config: Config, epoch: int, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The visits of an epoch, one step after the other: int64, at least steps x global_batch_size.

    labels: (images,) int64, of all training images. They decide nothing but what balanced sampling takes.
    """
    batch, data = config.global_batch_size, config.data
    if data.sampling == "balanced":
        return balanced_visits(config.seed, epoch, labels, len(labels) // batch * batch)
    if data.repeats > 1:
        return repeated_visits(config.seed, epoch, len(labels), batch, data.repeats)
    return epoch_order(config.seed, epoch, len(labels))


def epoch_order(seed: int, epoch: int, images: int) -> npt.NDArray[np.int64]:
    """A full random permutation of the training images: (images,) int64."""
    return generator(ORDER, seed, epoch).permutation(images)


def balanced_visits(seed: int, epoch: int, labels: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """(count,) int64, in random order: all classes equally often, and all images of a class, each within one.

    A class without images does not count.
    """
    rng = generator(ORDER, seed, epoch)
    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    _, sizes = np.unique(labels, return_counts=True)
    shares = count // len(sizes) + (rng.permutation(len(sizes)) < count % len(sizes))  # visits of each class
    place = np.arange(count) - np.repeat(shares.cumsum() - shares, shares)  # of a visit among those of its class
    first, size = np.repeat(sizes.cumsum() - sizes, shares), np.repeat(sizes, shares)  # of its class, in by_class
    visits: npt.NDArray[np.int64] = by_class[first + place % size] | place // size << INDEX_BITS
    return visits[rng.permutation(count)]


def repeated_visits(seed: int, epoch: int, images: int, batch: int, repeats: int) -> npt.NDArray[np.int64]:
    """(steps x batch,) int64: each step visits batch / repeats images so often (repeated augmentation, 1902.05509).

    It has all of them once, then all of them again. So neighbours, which mixing blends, are different images.
    """
    steps = images // batch
    distinct = epoch_order(seed, epoch, images)[: steps * batch // repeats].reshape(steps, 1, -1)
    return (distinct | np.arange(repeats)[:, None] << INDEX_BITS).reshape(-1)


def micro_batches(order: npt.NDArray[np.int64], step_in_epoch: int, size: int, batch: int) -> npt.NDArray[np.int64]:
    """The visits of one step: (size / batch, batch) int64, a row for each micro-batch."""
    return order[step_in_epoch * size : (step_in_epoch + 1) * size].reshape(-1, batch)


def random_resized_crop(
    uniform: Sequence[float], width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """(left, top, width, height), distributed as torchvision's RandomResizedCrop.get_params; 4 x ATTEMPTS draws."""
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for i in range(0, 4 * ATTEMPTS, 4):
        area = width * height * (scale[0] + uniform[i] * (scale[1] - scale[0]))
        aspect = math.exp(low + uniform[i + 1] * (high - low))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(uniform[i + 2] * (width - w + 1)), int(uniform[i + 3] * (height - h + 1)), w, h
    w, h = width, height  # no crop fits: the centre, with the nearest allowed ratio
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (width - w) // 2, (height - h) // 2, w, h
