"""What predictions are worth against labels: accuracy, loss, confusion, calibration, and the surest mistakes.

One pass over the predictions on disk. Memory depends on the number of classes, not of images.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainer.contract import UserError
from trainer.scoring.calibration import Bins, Calibration, calibrate
from trainer.scoring.predictions import LEFT_OUT, LogRows, Predictions, Truth

MISTAKES = 24  # that are kept to be shown


@dataclass(frozen=True)
class Mistake:
    """An image that was taken for something else."""

    probability: float  # of the wrong answer
    image: int
    label: int
    answer: int


@dataclass(frozen=True, kw_only=True)
class Measures:
    """Fractions of the images, unless said otherwise."""

    images: int
    top1: float
    top5: float
    loss: float  # mean cross entropy, in nats
    confusion: npt.NDArray[np.int64]  # (classes, classes): images by label and first answer
    ece: float  # expected calibration error
    calibration: Calibration | None
    mistakes: tuple[Mistake, ...]  # the surest first

    @property
    def images_of(self) -> npt.NDArray[np.int64]:
        """(classes,) how many images have this label."""
        total: npt.NDArray[np.int64] = self.confusion.sum(axis=1)
        return total

    @property
    def right_of(self) -> npt.NDArray[np.int64]:
        """(classes,) how many of them were recognised."""
        return np.diagonal(self.confusion)

    def worst_classes(self) -> list[int]:
        """All that have images, the least accurate first; of equal ones, those with more images."""
        having = np.flatnonzero(self.images_of)
        share = self.right_of[having] / self.images_of[having]
        return [int(label) for label in having[np.lexsort((having, -self.images_of[having], share))]]

    def taken_for(self, label: int, most: int = 3) -> list[tuple[int, int]]:
        """What images of a class were taken for, the most frequent first: answer and number of images."""
        row = self.confusion[label].copy()
        row[label] = 0
        order = np.argsort(-row, kind="stable")[:most]
        return [(int(answer), int(row[answer])) for answer in order if row[answer]]


def measure(predictions: Predictions, labels: Truth) -> Measures:
    """Of the images that count. Raises UserError if there is none, or where a prediction is no number."""
    images = int((labels != LEFT_OUT).sum())
    if not images:
        raise UserError(
            f"none of the {len(labels):,} images has a right answer, so there is nothing to score: give images that "
            "the labels are of, or labels of these images"
        )
    hits1 = hits5 = 0
    loss, bins, mistakes = 0.0, Bins(), list[Mistake]()
    confusion = np.zeros((predictions.classes, predictions.classes), np.int64)
    for first, rows in predictions.chunks():
        _check_numbers(first, rows)
        truth = labels[first : first + len(rows)]
        numbers = first + np.flatnonzero(truth != LEFT_OUT)
        rows, truth = rows[numbers - first], labels[numbers]
        answers, stated, ranks = rows.argmax(axis=1), np.exp(rows.max(axis=1).astype(np.float64)), ranks_of(rows, truth)
        hits1, hits5 = hits1 + int((ranks < 1).sum()), hits5 + int((ranks < 5).sum())
        loss -= float(rows[np.arange(len(rows)), truth].sum(dtype=np.float64))
        np.add.at(confusion, (truth, answers), 1)
        bins.add(stated, answers == truth)
        for i in np.flatnonzero(answers != truth).tolist():
            mistakes.append(Mistake(float(stated[i]), int(numbers[i]), int(truth[i]), int(answers[i])))
        mistakes = heapq.nlargest(MISTAKES, mistakes, key=lambda one: (one.probability, -one.image))
    return Measures(
        images=images, top1=hits1 / images, top5=hits5 / images, loss=loss / images, confusion=confusion,
        ece=bins.error, calibration=calibrate(predictions, labels), mistakes=tuple(mistakes),
    )  # fmt: skip


def ranks_of(rows: LogRows, labels: Truth) -> npt.NDArray[np.int64]:
    """(N,) how many answers come before the label. Of equal ones the first counts, as in argmax."""
    own = rows[np.arange(len(rows)), labels][:, None]
    before = np.arange(rows.shape[1]) < labels[:, None]
    ranks: npt.NDArray[np.int64] = ((rows > own) | ((rows == own) & before)).sum(axis=1)
    return ranks


def _check_numbers(first: int, rows: LogRows) -> None:
    if (odd := np.flatnonzero(np.isnan(rows).any(axis=1))).size:
        raise UserError(
            f"the answer to image {first + int(odd[0])} is NaN, no number: the weights are damaged, or --precision "
            "fp16 is too small for them; try --precision fp32, or other weights"
        )
