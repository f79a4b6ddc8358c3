"""Several members as one: the mean of their probabilities, how much they agree, and what that gains.

All of it reads predictions in chunks. How many members fit on a device is decided here, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from trainer.contract import UserError
from trainer.scoring.members import Member
from trainer.scoring.predictions import LogRows, Predictions

SHARE_OF_WEIGHTS = 0.5  # of the memory that is free: activations and the library's workspaces need the rest


@dataclass(frozen=True)
class Agreement:
    """How often members give the same class, right or wrong: shares of the images."""

    of_all: float
    of_pairs: npt.NDArray[np.float64]  # (members, members), 1 on the diagonal


@dataclass(frozen=True)
class Halves:
    """Top-1 of the images with even numbers, on which something is chosen, and of those with odd ones."""

    even: float
    odd: float


@dataclass(frozen=True)
class Gain:
    """What an ensemble has over its best member. That is chosen on the even images; both are scored on the odd ones."""

    best: int  # the number of that member
    best_top1: float
    ensemble_top1: float


def fitting_groups(members: Sequence[Member], free_bytes: Callable[[], float]) -> Iterator[tuple[Member, ...]]:
    """Members in groups, in their order: as many as fit into the memory of the device; else one after the other.

    `free_bytes()` is asked before every group. By then the members of the group before must have left the device.
    """
    waiting = list(members)
    while waiting:
        group, room = [waiting.pop(0)], SHARE_OF_WEIGHTS * free_bytes()
        while waiting and sum(map(weight_bytes, (*group, waiting[0]))) <= room:
            group.append(waiting.pop(0))
        yield tuple(group)


def weight_bytes(member: Member) -> int:
    """Of its weights and statistics."""
    return sum(tensor.nbytes for tensor in member.model.state_dict().values())


def free_memory(device: torch.device) -> float:
    """Bytes on a GPU. A CPU has its members in memory already, when they are opened: there nothing is short."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else float("inf")


def average_predictions(parts: Sequence[Predictions], mean: Predictions) -> None:
    """Write the logarithm of the mean of the members' probabilities for every image.

    Probabilities, not logits: members have logits of different scale, and the one with the largest would decide. The
    mean of probabilities is also what a deep ensemble is (Lakshminarayanan et al., arXiv:1612.01474).
    """
    for first, rows in _side_by_side(parts):
        together = np.logaddexp.reduce(rows, axis=0) - np.log(np.float32(len(rows)))
        mean.write(np.arange(first, first + len(together)), together)


def agreement_of(parts: Sequence[Predictions]) -> Agreement:
    """Over all images."""
    same, alike = np.zeros((len(parts), len(parts)), np.int64), 0
    for _, rows in _side_by_side(parts):
        answers = np.stack([member.argmax(axis=1) for member in rows])  # (members, N)
        same += (answers[:, None] == answers).sum(axis=2)
        alike += int((answers == answers[0]).all(axis=0).sum())
    return Agreement(alike / parts[0].images, same / parts[0].images)


def _side_by_side(parts: Sequence[Predictions]) -> Iterator[tuple[int, list[LogRows]]]:
    """The number of the first image of a chunk, and the rows of every member."""
    for chunks in zip(*(part.chunks() for part in parts), strict=True):
        yield chunks[0][0], [rows for _, rows in chunks]


def halves_of(part: Predictions, labels: npt.NDArray[np.int64]) -> Halves:
    """Raises UserError where a half would be empty."""
    if len(labels) < 2:
        raise UserError(f"{len(labels)} image(s) have no two halves, one to choose on and one to score: take more")
    hits = np.concatenate(
        [rows.argmax(axis=1) == labels[first : first + len(rows)] for first, rows in part.chunks()]
    )  # fmt: skip
    return Halves(float(hits[::2].mean()), float(hits[1::2].mean()))


def gain_of(members: Sequence[Halves], ensemble: Halves) -> Gain:
    """Of members that are equally good on the even images, the first counts."""
    best = max(range(len(members)), key=lambda number: members[number].even)
    return Gain(best, members[best].odd, ensemble.odd)
