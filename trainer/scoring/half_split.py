"""One half of a set as a set of its own: a soup is tried on the one and scored on the other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from trainer.data.reading.split import EncodedImages
from trainer.scoring.data import ScoredSet
from trainer.scoring.halves import split_halves


class HalfSplit:
    """Some images of a split, with numbers of their own: its image i is image `numbers[i]` of the whole."""

    def __init__(self, whole: EncodedImages, numbers: npt.NDArray[np.int64]) -> None:
        self._whole, self._numbers = whole, numbers
        self.labels, self.split = whole.labels[numbers], whole.split

    def __len__(self) -> int:
        return len(self._numbers)

    def jpeg(self, i: int) -> npt.NDArray[np.uint8]:
        return self._whole.jpeg(int(self._numbers[i]))

    def pixels(self, i: int, error: ValueError) -> npt.NDArray[np.uint8]:
        return self._whole.pixels(int(self._numbers[i]), error)

    def prefetch(self, indices: npt.NDArray[np.int64]) -> None:
        self._whole.prefetch(self._numbers[indices])

    def name(self, i: int) -> str:
        return self._whole.name(int(self._numbers[i]))


def half_of(scored: ScoredSet, half: int) -> ScoredSet:
    """The images of one half, CHOOSING or SCORING. Raises UserError where one would be empty."""
    numbers, answers = np.flatnonzero(split_halves(scored.labels) == half), scored.right_answers
    return replace(
        scored, labels=scored.labels[numbers], numbers=numbers,
        left_out={},  # those are in neither half
        right_answers=None if answers is None else [answers[i] for i in numbers.tolist()],
        open=lambda pixels: HalfSplit(scored.open(pixels), numbers),
    )  # fmt: skip
