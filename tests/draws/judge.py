"""What came of a preparation, compared with the truth: right, or refused with the file named. All else is wrong."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.draws.pictures import SIDE, Pixels, Seen, seen
from tests.draws.source import Entry, Source, shown
from trainer.data.format import read_index
from trainer.data.making.prepare import Prepared
from trainer.data.reading.decode import decode_box, image_size
from trainer.data.reading.split import PreparedSplit
from trainer.text import show_name


class WrongError(Exception):
    """A verdict: the message is what the tally records."""


@dataclass(frozen=True)
class Options:
    """How a draw is prepared."""

    images_per_shard: int
    max_broken_share: float
    strict: bool


@dataclass(frozen=True)
class Outcome:
    """What one call did."""

    prepared: Prepared | None
    refused: str  # the message
    said: str
    cut: bool = False  # it was interrupted on purpose


@dataclass(frozen=True)
class Found:
    """An image of prepared data, as training gets it."""

    name: str
    label: str
    pixels: Pixels


def told(place: str) -> str:
    """A path as messages and prepared data have it."""
    return show_name(os.fsencode(place).decode(errors="backslashreplace"))


def judge(source: Source, outcome: Outcome, store: Path, options: Options) -> None:
    """Raises WrongError."""
    whole = [entry for entry in source.truth if seen(entry.data)]
    broken = [entry for entry in source.truth if not seen(entry.data)]
    must, may = list(source.refusal), list(source.doubtful)
    if len(broken) > options.max_broken_share * len(source.truth):
        must += [told(entry.place) for entry in broken] + [f"{e.split}[" for e in broken]
    if {"train", "val"} != {entry.split for entry in whole}:
        must.append("has no image left")
    if options.strict:
        (must if _doubts(whole) else may if _few(whole) else []).append("--strict-data")
    if outcome.refused:
        _judge_refusal(outcome.refused, must, may)
        return
    if must:
        raise WrongError(f"SILENT: prepared, though it had to be refused with one of {must}")
    _judge_images(whole, outcome, store)
    _judge_words(source, whole, broken, outcome, options)


def _judge_refusal(message: str, must: Sequence[str], may: Sequence[str]) -> None:
    if not must and not may:
        raise WrongError(f"refused, though it is whole: {message}")
    if not any(word in message for word in (*must, *may)):
        raise WrongError(f"refused, but with none of {[*must, *may]}: {message}")


def _doubts(whole: Sequence[Entry]) -> bool:
    """Whether an image of training is in validation, or has two labels."""
    train = [entry for entry in whole if entry.split == "train"]
    shared = {entry.data for entry in train} & {entry.data for entry in whole if entry.split == "val"}
    return bool(shared) or len({(e.data, e.label) for e in train}) > len({e.data for e in train})


def _few(whole: Sequence[Entry]) -> bool:
    """Whether a class has no image in a split any more."""
    labels = {entry.label for entry in whole}
    return len({(e.split, e.label) for e in whole}) < 2 * len(labels)


def _judge_images(whole: Sequence[Entry], outcome: Outcome, store: Path) -> None:
    assert outcome.prepared is not None
    folder = store / outcome.prepared.prefix
    index = read_index(folder)
    if index.source is None or index.source.form != "folder":
        raise WrongError(f"the index names no source: {index.source}")
    wanted_classes = sorted({shown(entry.label) for entry in whole})
    if missing := set(wanted_classes) - set(index.classes):
        raise WrongError(f"SILENT: the classes {sorted(missing)} are missing in {index.classes}")
    for split in ("train", "val"):
        images = PreparedSplit(folder, index, split, SIDE)
        left = [_found(images, i) for i in range(len(images))]
        for entry in whole:
            if entry.split == split:
                right = _of_entry(entry, left)
                left = [image for image in left if image is not right]
        if left:
            raise WrongError(f"SILENT: {split} has {[image.name for image in left]}, which nobody gave")


def _found(images: PreparedSplit, i: int) -> Found:
    jpeg = images.jpeg(i)
    width, height = image_size(jpeg)
    pixels = decode_box(jpeg, (0, 0, width, height)).astype(np.int16)
    return Found(images.name(i), images.classes[images.labels[i]], pixels)


def _of_entry(entry: Entry, images: Sequence[Found]) -> Found:
    """The prepared image of an entry: its name, its label, its pixels."""
    wanted = seen(entry.data)
    assert wanted is not None
    place, label = told(entry.place), shown(entry.label)
    named = [image for image in images if image.name == place or "[" in image.name]
    right = [image for image in named if image.label == label and _error(wanted, image.pixels) <= wanted.allowed]
    if right:
        return min(right, key=lambda image: _error(wanted, image.pixels))
    if not named:
        raise WrongError(f"SILENT: {place} of {entry.split} is missing; there are {[image.name for image in images]}")
    nearest = min(named, key=lambda image: _error(wanted, image.pixels))
    raise WrongError(
        f"SILENT: {place} of {entry.split} is {label!r}, {wanted.pixels.shape}; prepared is {nearest.label!r}, "
        f"{nearest.pixels.shape}, with pixels {_error(wanted, nearest.pixels):.1f} away (may be {wanted.allowed:.1f})"
    )


def _error(wanted: Seen, pixels: Pixels) -> float:
    return float(np.abs(wanted.pixels - pixels).mean()) if wanted.pixels.shape == pixels.shape else float("inf")


def _judge_words(
    source: Source, whole: Sequence[Entry], broken: Sequence[Entry], outcome: Outcome, options: Options
) -> None:
    """What is left out, and what looks wrong, is told. Only the call that makes the data tells it."""
    if "already prepared" in outcome.said:
        return
    wanted = [f"broken and left out: {len(broken)}:"] if broken else []
    train = {entry.data for entry in whole if entry.split == "train"}
    if any(entry.data in train for entry in whole if entry.split == "val"):
        wanted.append("images of val are in train, too")
    for words in (*source.told, *wanted):
        if words not in outcome.said:
            raise WrongError(f"SILENT: nothing says {words!r}")
