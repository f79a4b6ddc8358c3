"""The even and the odd images of a set: on the one half something is chosen, and on the other one it is scored."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.contract import UserError
from trainer.data.reading.split import PreparedSplit
from trainer.scoring.data import ScoredSet
from trainer.scoring.predictions import Predictions

EVEN, ODD = 0, 1


@dataclass(frozen=True)
class Halves:
    """Top-1 of the images with even numbers, and of those with odd ones."""

    even: float
    odd: float


def halves_of(part: Predictions, labels: npt.NDArray[np.int64]) -> Halves:
    """Raises UserError where a half would be empty."""
    if len(labels) < 2:
        raise UserError(f"{len(labels)} image(s) have no two halves, one to choose on and one to score: take more")
    hits = np.concatenate([rows.argmax(axis=1) == labels[first : first + len(rows)] for first, rows in part.chunks()])
    return Halves(float(hits[EVEN::2].mean()), float(hits[ODD::2].mean()))


class HalfOfSplit(PreparedSplit):
    """Every other image of a split, with numbers of their own."""

    def __init__(self, whole: PreparedSplit, half: int) -> None:
        self._whole, self._half = whole, half
        self.labels = whole.labels[half::2]
        self.classes, self.split, self.short_side = whole.classes, whole.split, whole.short_side

    def jpeg(self, i: int) -> npt.NDArray[np.uint8]:
        return self._whole.jpeg(2 * i + self._half)

    def prefetch(self, indices: npt.NDArray[np.int64]) -> None:
        self._whole.prefetch(2 * indices + self._half)

    def name(self, i: int) -> str:
        return self._whole.name(2 * i + self._half)


def half_of(scored: ScoredSet, half: int) -> ScoredSet:
    """The even (0) or the odd (1) images of a set."""
    whole: Any = scored.open  # of prepared data: soups take no other
    return replace(scored, labels=scored.labels[half::2], open=lambda pixels: HalfOfSplit(whole(pixels), half))
