"""How far stated probabilities can be believed: the expected calibration error, and a temperature that mends them.

After Guo et al., "On Calibration of Modern Neural Networks" (arXiv:1706.04599). Everything streams over predictions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from trainer.scoring.halves import CHOOSING, SCORING, split_halves
from trainer.scoring.predictions import LEFT_OUT, LogRows, Predictions, Truth

CALIBRATION_BINS = 15  # of equal width, as in the paper
SHARPEST, SOFTEST = 20.0, 1 / 20  # what logits are multiplied by; where all answers are right, sharper is ever better
MOST_ROUNDS = 50
CLOSE_ENOUGH = 1e-6  # between two rounds, as a share


@dataclass(frozen=True)
class Bins:
    """Answers by their probability: a bin is (low, high]."""

    images: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(CALIBRATION_BINS, np.int64))
    right: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(CALIBRATION_BINS, np.int64))
    stated: npt.NDArray[np.float64] = field(
        default_factory=lambda: np.zeros(CALIBRATION_BINS)
    )  # sum of the probabilities

    def add(self, probabilities: npt.NDArray[np.float64], is_right: npt.NDArray[np.bool_]) -> None:
        """Of the first answers of some images: (N,) both."""
        bins = np.clip(np.ceil(probabilities * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)
        np.add.at(self.images, bins, 1)
        np.add.at(self.right, bins, is_right)
        np.add.at(self.stated, bins, probabilities)

    @property
    def error(self) -> float:
        """Mean distance between what was stated and what came true, weighted by images: a fraction."""
        return float(np.abs(self.stated - self.right).sum() / max(1, self.images.sum()))


@dataclass(frozen=True)
class Calibration:
    """A temperature that was fitted on one half of the images, and the calibration error of the other one."""

    temperature: float  # logits are divided by it
    error_before: float
    error_after: float


def calibrate(predictions: Predictions, labels: Truth) -> Calibration | None:
    """None where fewer than two images count."""
    if (labels != LEFT_OUT).sum() < 2:
        return None
    halves = split_halves(labels)
    sharpness = fit_sharpness(predictions, labels, halves)
    before, after = Bins(), Bins()
    for rows, truth in _half(predictions, labels, halves == SCORING):
        is_right = rows.argmax(axis=1) == truth
        for bins, factor in ((before, 1.0), (after, sharpness)):
            bins.add(np.exp(_sharpened(rows, factor).max(axis=1).astype(np.float64)), is_right)
    return Calibration(1 / sharpness, before.error, after.error)


def fit_sharpness(predictions: Predictions, labels: Truth, halves: npt.NDArray[np.int8]) -> float:
    """What logits of the choosing half must be multiplied by for the least loss: 1 / temperature.

    The loss is convex in it, so Newton's method finds it; a step that leaves the known interval halves that instead.
    """
    low, high, factor = SOFTEST, SHARPEST, 1.0
    for _ in range(MOST_ROUNDS):
        slope, bend = _slope_and_bend(predictions, labels, halves == CHOOSING, factor)
        low, high = (low, factor) if slope > 0 else (factor, high)
        step = factor - slope / bend if bend > 0 else np.inf
        step = step if low < step < high else (low * high) ** 0.5
        if abs(step - factor) <= CLOSE_ENOUGH * factor:
            return float(step)
        factor = float(step)
    return factor


def _slope_and_bend(
    predictions: Predictions, labels: Truth, chosen: npt.NDArray[np.bool_], factor: float
) -> tuple[float, float]:
    """First and second derivative of the summed loss by the factor."""
    slope = bend = 0.0
    for rows, truth in _half(predictions, labels, chosen):
        shares = np.exp(_sharpened(rows, factor))
        known = np.where(shares > 0, rows, 0)  # what is impossible has a share of 0, and may have a logarithm of -inf
        means = (shares * known).sum(axis=1)
        slope += float((means - rows[np.arange(len(rows)), truth]).sum(dtype=np.float64))
        bend += float(((shares * known * known).sum(axis=1) - means * means).sum(dtype=np.float64))
    return slope, bend


def _sharpened(rows: LogRows, factor: float) -> LogRows:
    """Log-probabilities after their logits were multiplied by the factor."""
    scaled = rows * np.float32(factor)
    scaled -= scaled.max(axis=1, keepdims=True)
    scaled -= np.log(np.exp(scaled).sum(axis=1, keepdims=True))
    return scaled


def _half(
    predictions: Predictions, labels: Truth, chosen: npt.NDArray[np.bool_]
) -> Iterator[tuple[LogRows, Truth]]:  # fmt: skip
    """The rows and labels of some images, which are never all in memory."""
    for first, rows in predictions.chunks():
        these = chosen[first : first + len(rows)]
        yield rows[these], labels[first : first + len(rows)][these]
