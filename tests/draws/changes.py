"""What a person does to a source between two calls, or during one. The truth becomes another, too."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from tests.draws.damages import pick
from tests.draws.pictures import paint
from tests.draws.source import Source

Change = Callable[[random.Random, Source], bool]


def swap_labels(dice: random.Random, source: Source) -> bool:
    """Two images change places. Names, and often all sizes, stay the same."""
    first, i = pick(dice, source)
    second, k = pick(dice, source)
    if first[i].data == second[k].data:
        return False
    one, other = first[i].data, second[k].data
    first[i], second[k] = replace(first[i], data=other), replace(second[k], data=one)
    return True


def edit(dice: random.Random, source: Source) -> bool:
    """Another picture of the same number of bytes, where that can be."""
    entries, i = pick(dice, source)
    new, old = paint(dice), entries[i].data
    entries[i] = replace(entries[i], data=new.data + bytes(max(0, len(old) - len(new.data))))
    return True


def remove(dice: random.Random, source: Source) -> bool:
    """One of several images of a class and split."""
    entries, i = pick(dice, source)
    gone = entries[i]
    alike = [e for e in source.truth if (e.label, e.split) == (gone.label, gone.split)]
    tied = source.archives or source.tables or source.links or source.form in ("flat val", "Kaggle")
    if len(alike) < 2 or tied:
        return False
    del entries[i]
    return True


def add(dice: random.Random, source: Source) -> bool:
    entries, i = pick(dice, source, "train")
    old = entries[i]
    place = old.place.replace("train_", "more_")
    if place == old.place or any(e.place == place for e in entries) or (source.tables and not old.place):
        return False
    entries.append(replace(old, data=paint(dice).data, place=place))
    return True


CHANGES: tuple[Change, ...] = (swap_labels, swap_labels, edit, edit, remove, add)


def change(dice: random.Random, source: Source) -> bool:
    """Whether something else is there now."""
    before = source.content()
    if not source.is_whole:
        return False
    return dice.choice(CHANGES)(dice, source) and source.content() != before
