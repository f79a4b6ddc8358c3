"""Several members as one: the mean of their probabilities, how much they agree, and what that gains.

All of it reads predictions in chunks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.scoring.halves import CHOOSING_HALF, SCORING_HALF, Halves
from trainer.scoring.predictions import LEFT_OUT, LogRows, Predictions, Truth
from trainer.text import show_name, show_share


@dataclass(frozen=True)
class Agreement:
    """How often members give the same class, right or wrong: shares of the images."""

    of_all: float
    of_pairs: npt.NDArray[np.float64]  # (members, members), 1 on the diagonal


@dataclass(frozen=True)
class Gain:
    """What an ensemble has over its best member. That is chosen on one half; both are scored on the other."""

    best: int  # the number of that member
    best_top1: float
    ensemble_top1: float


def average_predictions(parts: Sequence[Predictions], mean: Predictions) -> None:
    """Write the logarithm of the mean of the members' probabilities for every image.

    Probabilities, not logits: members have logits of different scale, and the one with the largest would decide. The
    mean of probabilities is also what a deep ensemble is (Lakshminarayanan et al., arXiv:1612.01474).
    """
    for first, rows in _side_by_side(parts):
        together = np.logaddexp.reduce(rows, axis=0) - np.log(np.float32(len(rows)))
        mean.write(np.arange(first, first + len(together)), together)


def agreement_of(parts: Sequence[Predictions], labels: Truth) -> Agreement:
    """Over all images that count."""
    same, alike = np.zeros((len(parts), len(parts)), np.int64), 0
    for first, rows in _side_by_side(parts):
        counted = labels[first : first + len(rows[0])] != LEFT_OUT
        answers = np.stack([member.argmax(axis=1) for member in rows])[:, counted]  # (members, N)
        same += (answers[:, None] == answers).sum(axis=2)
        alike += int((answers == answers[0]).all(axis=0).sum())
    images = int((labels != LEFT_OUT).sum())
    return Agreement(alike / images, same / images)


def _side_by_side(parts: Sequence[Predictions]) -> Iterator[tuple[int, list[LogRows]]]:
    """The number of the first image of a chunk, and the rows of every member."""
    for chunks in zip(*(part.chunks() for part in parts), strict=True):
        yield chunks[0][0], [rows for _, rows in chunks]


def gain_of(members: Sequence[Halves], ensemble: Halves) -> Gain:
    """Of members that are equally good on the choosing half, the first counts."""
    best = best_choice(members)
    return Gain(best, members[best].scoring, ensemble.scoring)


def best_choice(members: Sequence[Halves]) -> int:
    """The number of the member that is best on the choosing half."""
    return max(range(len(members)), key=lambda number: members[number].choosing)


def ensemble_json(names: Sequence[str], agreement: Agreement, gain: Gain) -> dict[str, Any]:
    """What an ensemble has beside the scores of any member. Shares are fractions."""
    return {
        "members": list(names), "mean": "of probabilities",
        "agreement": {"all": agreement.of_all, "pairs": [
            {"members": [names[a], names[b]], "share": share} for share, a, b in _pairs(agreement)
        ]},
        "gain": {
            "best_member": names[gain.best], "chosen_on": CHOOSING_HALF, "scored_on": SCORING_HALF,
            "best_member_top1": gain.best_top1, "ensemble_top1": gain.ensemble_top1,
            "gain": gain.ensemble_top1 - gain.best_top1,
        },
    }  # fmt: skip


def ensemble_rows(names: Sequence[str], agreement: Agreement, gain: Gain) -> list[tuple[str, str]]:
    """The same for the terminal, as cells. Shares are percent."""
    shown = [show_name(name) for name in names]
    pairs = _pairs(agreement)
    text = f"all give the same class for {show_share(agreement.of_all, 1)} of the images"
    if len(names) > 2:
        two = [f"{show_share(share, 1)} ({shown[a]} and {shown[b]})" for share, a, b in (min(pairs), max(pairs))]
        text += f"; two of them for {two[0]} to {two[1]}"
    return [
        ("agreement", text),
        (
            "gain",
            f"{100 * (gain.ensemble_top1 - gain.best_top1):+.2f} points over {shown[gain.best]}, the best member on "
            f"{CHOOSING_HALF}: {show_share(gain.ensemble_top1)} and {show_share(gain.best_top1)} on {SCORING_HALF}",
        ),
    ]  # fmt: skip


def _pairs(agreement: Agreement) -> list[tuple[float, int, int]]:
    """The share of images on which two members agree, and their numbers."""
    count = len(agreement.of_pairs)
    return [(float(agreement.of_pairs[a, b]), a, b) for a in range(count) for b in range(a + 1, count)]
