"""Facts about ImageNet's 1,000 classes: WordNet ids in the order of a network's outputs, and their English names.

`imagenet.tsv` has them, with their sources. Standard library only.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

CLASSES_FILE = Path(__file__).with_suffix(".tsv")
OTHER_FIRST_WORDS = 2  # of the hub's names: "crane" twice, and "maillot"


@cache
def _class_rows() -> tuple[tuple[str, str, str], ...]:
    lines = CLASSES_FILE.read_text("utf-8").splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    return tuple((wnid, name, sets) for wnid, name, sets in rows)


@cache
def wnids() -> tuple[str, ...]:
    """The 1,000 WordNet ids, as n01440764, in the order of the outputs."""
    return tuple(wnid for wnid, _, _ in _class_rows())


@cache
def english_names() -> tuple[str, ...]:
    """The 1,000 names in the same order, as "tench". No two are equal."""
    return tuple(name for _, name, _ in _class_rows())


@cache
def wnids_of_a() -> tuple[str, ...]:
    """The 200 classes of ImageNet-A, sorted."""
    return tuple(wnid for wnid, _, sets in _class_rows() if "a" in sets)


@cache
def wnids_of_r() -> tuple[str, ...]:
    """The 200 classes of ImageNet-R, sorted."""
    return tuple(wnid for wnid, _, sets in _class_rows() if "r" in sets)


def class_names(classes: Sequence[str]) -> tuple[str, ...]:
    """What a person calls these classes: English names where all are WordNet ids of ImageNet, else as they are."""
    names = dict(zip(wnids(), english_names(), strict=True))
    return tuple(names[one] for one in classes) if all(one in names for one in classes) else tuple(classes)


def class_wnids(classes: Sequence[str]) -> tuple[str, ...]:
    """The WordNet ids of classes that are given as ids or as English names; () where one is neither.

    The names of ILSVRC/imagenet-1k on the hub are lists of synonyms, as "tench, Tinca tinca". All 1,000 of them are
    known by their first words and their order, in which two differ.
    """
    ids = dict(zip(english_names(), wnids(), strict=True)) | {one: one for one in wnids()}
    if all(one in ids for one in classes):
        return tuple(ids[one] for one in classes)
    if len(classes) == len(wnids()):
        pairs = zip(classes, english_names(), strict=True)
        if sum(names.partition(",")[0] != name for names, name in pairs) <= OTHER_FIRST_WORDS:
            return wnids()
    return ()
