"""Twelve statistics of training images, and how far those of one way to read them are from those of another.

Sharpness is what a stored copy loses first: a crop that is enlarged has weaker gradients and no fine detail.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
BANDS = ("low_power", "middle_power", "high_power")  # below 1/8, below 1/4, and from 1/4 of a cycle per pixel
STATISTICS = (
    "brightness", "contrast", "dark", "bright", "saturation", "gradient", "steep_gradient", "laplacian",
    "colour_gradient", *BANDS,
)  # fmt: skip
SHARPNESS = ("gradient", "steep_gradient", "laplacian", "colour_gradient", "middle_power", "high_power")

Statistics = Mapping[str, np.ndarray]  # of STATISTICS: one value for each image, of pixels in 0..1


def statistics_of(images: np.ndarray) -> dict[str, np.ndarray]:
    """The twelve statistics of (N, H, W, 3) uint8 images: (N,) float64 each.

    Gradients and the Laplacian are mean magnitudes, the steep gradient is the 95th percentile. Powers are the variance
    of brightness in a band of frequencies.
    """
    pixels = images.astype(np.float32) / 255
    luma, plane = pixels @ LUMA, (1, 2)
    gradient = _gradient(luma)
    levels = np.percentile(luma, (5, 95), axis=plane)
    centre = luma[:, 1:-1, 1:-1]
    around = luma[:, :-2, 1:-1] + luma[:, 2:, 1:-1] + luma[:, 1:-1, :-2] + luma[:, 1:-1, 2:]
    found = {
        "brightness": luma.mean(plane), "contrast": luma.std(plane), "dark": levels[0], "bright": levels[1],
        "saturation": (pixels.max(3) - pixels.min(3)).mean(plane),
        "gradient": gradient.mean(plane), "steep_gradient": np.percentile(gradient, 95, axis=plane),
        "laplacian": np.abs(around - 4 * centre).mean(plane),
        "colour_gradient": _gradient(pixels[..., 0] - pixels[..., 2]).mean(plane),
        **_powers(luma),
    }  # fmt: skip
    return {name: found[name].astype(np.float64) for name in STATISTICS}


def _gradient(plane: np.ndarray) -> np.ndarray:
    """(N, H, W) to the magnitude of its differences: (N, H - 1, W - 1)."""
    found: np.ndarray = np.hypot(plane[:, 1:, :-1] - plane[:, :-1, :-1], plane[:, :-1, 1:] - plane[:, :-1, :-1])
    return found


def _powers(luma: np.ndarray) -> dict[str, np.ndarray]:
    """The variance of (N, H, W) brightness in each of BANDS. A Hann window keeps the borders out of it."""
    height, width = luma.shape[1:]
    window = np.outer(np.hanning(height), np.hanning(width)).astype(np.float32)
    level = (luma * window).sum((1, 2), keepdims=True) / window.sum()
    spectrum = np.abs(np.fft.rfft2((luma - level) * window)) ** 2
    spectrum[:, :, 1 : (width + 1) // 2] *= 2  # the half that rfft2 leaves out
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    scale, edges = 1 / (height * width * (window**2).sum()), (0, 1 / 8, 1 / 4, np.inf)
    return {
        name: spectrum[:, (frequency >= low) & (frequency < high)].sum(1) * scale
        for name, low, high in zip(BANDS, edges, edges[1:], strict=False)
    }


def ratios(ours: Statistics, theirs: Statistics) -> dict[str, float]:
    """Of each statistic: its mean over our images, over its mean over theirs."""
    return {name: float(ours[name].mean() / theirs[name].mean()) for name in STATISTICS}


def distances(ours: Statistics, theirs: Statistics) -> dict[str, float]:
    """Of each statistic: the largest difference between its two distributions (Kolmogorov and Smirnov's), 0 to 1."""
    return {name: _distance(np.sort(ours[name]), np.sort(theirs[name])) for name in STATISTICS}


def _distance(first: np.ndarray, second: np.ndarray) -> float:
    """Of two sorted samples."""
    both = np.concatenate([first, second])
    shares = [np.searchsorted(sample, both, side="right") / len(sample) for sample in (first, second)]
    return float(np.abs(shares[0] - shares[1]).max())
