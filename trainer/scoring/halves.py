"""The two halves of a set: something is chosen on one of them, and what that is worth is told from the other.

The best of many numbers is too good by chance on the images that chose it. Both halves have the same classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainer.contract import UserError
from trainer.scoring.predictions import LEFT_OUT, Predictions, Truth

CHOOSING, SCORING, NEITHER = 0, 1, 2  # the half of an image; NEITHER: no score counts it
CHOOSING_HALF, SCORING_HALF = "the choosing half", "the scoring half"  # as users read it
SEED = 0  # other halves would have other scores


@dataclass(frozen=True)
class Halves:
    """Top-1 of the images of each half."""

    choosing: float
    scoring: float


def split_halves(labels: Truth) -> npt.NDArray[np.int8]:
    """(N,) the half of each image, a function of the labels alone. Raises UserError where a half would be empty.

    Each class is shuffled and dealt out in turn, as if data were not in any order: files lie by writer, place or day.
    Images of a class, and all together, are as many in one half as in the other, or one more.
    """
    order = np.random.default_rng(SEED).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    order = order[labels[order] != LEFT_OUT]
    if len(order) < 2:
        raise UserError(f"{len(order)} image(s) have no two halves, one to choose on and one to score: take more")
    halves = np.full(len(labels), NEITHER, np.int8)
    halves[order] = np.where(np.arange(len(order)) % 2, SCORING, CHOOSING)
    return halves


def halves_of(part: Predictions, truth: Truth, halves: npt.NDArray[np.int8]) -> Halves:
    """Of answers to all images. `truth` is what counts as right for them, `halves` is from `split_halves`."""
    hits = np.concatenate([rows.argmax(axis=1) == truth[first : first + len(rows)] for first, rows in part.chunks()])
    return Halves(float(hits[halves == CHOOSING].mean()), float(hits[halves == SCORING].mean()))
