"""What may be wrong with data that can be read: images of training in validation, classes without images, few images.

Nothing is refused here: `prepare` tells these, and refuses them with `--strict-data`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from trainer.data.format import Tally
from trainer.data.making.forms.sources import Source
from trainer.data.making.layout import few
from trainer.text import show_name

SMALL_SHARE = 10  # a class with less than a tenth of the images of the middle one is told
SHOWN = 3


def show_class_counts(source: Source, tallies: Mapping[str, Tally]) -> str:
    """How many images the classes have, from the smallest to the largest."""
    parts = []
    for split, tally in tallies.items():
        counts = _counts(source, tally)
        parts.append(f"{split} {counts.min():,} to {counts.max():,}" if counts.min() < counts.max() else
                     f"{split} {counts.max():,}")  # fmt: skip
    return f"images of a class: {', '.join(parts)}"


def doubts_of(source: Source, tallies: Mapping[str, Tally]) -> list[str]:
    """What should be looked at before training, a line for each kind. Compares the bytes of all images."""
    told = []
    for split, tally in tallies.items():
        counts = _counts(source, tally)
        if len(none := np.flatnonzero(counts == 0)):
            told.append(f"{len(none):,} classes without an image in {split}: {_class_names(source, none)}")
        middle = np.median(counts)
        if len(small := np.flatnonzero((counts > 0) & (counts * SMALL_SHARE < middle))):
            told.append(f"{len(small):,} classes of {split} have few images, the middle one {middle:,.0f}: "
                        f"{_class_names(source, small)}")  # fmt: skip
    train, val = (_hashes(tallies[split]) for split in ("train", "val"))
    shared = np.flatnonzero((val != 0) & np.isin(val, train))
    if len(shared):
        places = [(i, np.argmax(train == val[i])) for i in shared[:SHOWN]]
        pairs = [f"{_name(source, 'val', i)} is {_name(source, 'train', place)}" for i, place in places]
        told.append(f"{len(shared):,} images of val are in train, too: {', '.join(pairs)}{_more(shared)}")
    if told_twice := _twice(source, train):
        told.append(told_twice)
    return told


def _twice(source: Source, hashes: npt.NDArray[np.uint64]) -> str:
    """Images of training that are there again with another label."""
    order = np.argsort(hashes, kind="stable")
    values, labels = hashes[order], source.splits["train"].labels[order]
    other = np.flatnonzero((values[1:] == values[:-1]) & (labels[1:] != labels[:-1]) & (values[1:] != 0))
    if not len(other):
        return ""
    pairs = [" is ".join(_name(source, "train", order[i + step]) for step in (0, 1)) for i in other[:SHOWN]]
    return f"{len(other):,} images of train are there twice with different labels: {', '.join(pairs)}{_more(other)}"


def _more(found: npt.NDArray[np.int64]) -> str:
    return f" and {len(found) - SHOWN:,} more" if len(found) > SHOWN else ""


def _hashes(tally: Tally) -> npt.NDArray[np.uint64]:
    return np.concatenate(tally.hashes) if tally.hashes else np.empty(0, np.uint64)


def _counts(source: Source, tally: Tally) -> npt.NDArray[np.int64]:
    return np.bincount(np.concatenate(tally.labels), minlength=len(source.classes))


def _class_names(source: Source, numbers: npt.NDArray[np.int64]) -> str:
    return few([show_name(source.classes[number]) for number in numbers])


def _name(source: Source, split: str, number: np.int64) -> str:
    return show_name(source.splits[split][int(number)].name)
