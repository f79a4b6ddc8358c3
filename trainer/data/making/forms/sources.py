"""Opens what DATA= names as a `Source`: class names, and random access to the encoded images of "train" and "val".

Nothing is decoded here. `layout` says which file is what; the readers are in `source_formats`, `archives` and
`parquet`. `datasets` is imported only when a source that needs it is opened: a warm run never does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from trainer.contract import UserError
from trainer.data.making.forms.archives import open_archives
from trainer.data.making.forms.parquet import open_parquet
from trainer.data.making.forms.source_formats import (
    Example,
    Split,
    open_digits,
    open_image_folder,
)
from trainer.data.making.layout import CARD, FORMS, NONE, Choices, SourceLayout, how_to_choose, lay_out, refused
from trainer.data.making.layout.listing import walk

DataForm = Literal["digits", "folder", "hub"]

__all__ = ["Choices", "Example", "Source", "Split", "identify", "open_source"]


@dataclass(frozen=True)
class Source:
    name: str
    classes: tuple[str, ...]
    splits: Mapping[str, Split]  # "train" and "val"
    said: tuple[str, ...] = ()  # how files and labels were understood, and every file that was not read


def open_source(data: str, choices: Choices = NONE) -> Source:
    """Open the digits or a folder and check it: both splits, no empty class, labels in range.

    UserError says what is wrong.
    """
    if identify(data)[1] == "digits":
        classes, splits = open_digits()
        _check(data, classes, splits)
        return Source("digits", classes, splits)
    folder = Path(data).expanduser()
    return open_planned(data, folder, plan(data, folder, choices), choices)


def open_planned(data: str, folder: Path, layout: SourceLayout, choices: Choices) -> Source:
    """Open the files of a folder in the way that the layout says. Where they come from, `data` says."""
    said: tuple[str, ...] = ()
    if layout.form == "parquet":
        classes, splits, said = open_parquet(data, folder, layout, choices)
    elif layout.form == "tar":
        classes, splits = open_archives(data, folder, layout)
    else:
        classes, splits = layout.classes, open_image_folder(data, folder, layout)
    _check(data, classes, splits)
    said = said + _check_declared(data, layout, classes, splits, choices)
    return Source(identify(data)[0], classes, splits, (*layout.said, *said, *layout.table()))


def identify(data: str) -> tuple[str, DataForm]:
    """The name of what DATA= names, and its form. Nothing is opened, and the hub is not asked."""
    if data == "digits":
        return "digits", "digits"
    folder = Path(data).expanduser()
    if folder.is_dir():
        return _slug(folder.resolve().name), "folder"
    if folder.exists():
        raise refused(data, f"this is a file: give the folder that holds it. Known forms: {FORMS}")
    hub_id, at, commit = data.partition("@")
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", hub_id):
        if at and not re.fullmatch(r"[0-9a-f]{40}", commit):
            raise UserError(
                f"DATA={data}: {commit!r} is not a commit of the hub: give all 40 hex digits (a branch or a tag may "
                f"move), as {hub_id}@… or the newest commit: DATA={hub_id}"
            )
        return _slug(hub_id.split("/")[1]), "hub"
    raise UserError(f"DATA={data} does not exist on this machine and is not a Hugging Face id. Known forms: {FORMS}")


def plan(data: str, folder: Path, choices: Choices) -> SourceLayout:
    """Which file of a folder is what. Raises UserError where that is not sure."""
    listing = walk(folder)
    card = (folder / CARD).read_text("utf-8", errors="replace") if listing.get(CARD, -1) >= 0 else ""
    return lay_out(data, listing, choices, card=card)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9_.-]+", "-", text.lower()).strip("-.") or "data"


def _check(data: str, classes: tuple[str, ...], splits: Mapping[str, Split]) -> None:
    for name, split in splits.items():
        labels = split.labels
        if len(labels) == 0:
            raise refused(data, f"split {name} has no images: put images there")
        bad = np.flatnonzero((labels < 0) | (labels >= len(classes)))
        if len(bad):
            raise refused(
                data,
                f"label {labels[bad[0]]} of image {bad[0]} in split {name} is out of range ({len(bad)} "
                f"such): with {len(classes)} classes, labels are 0 to {len(classes) - 1}; correct or remove those rows",
            )
    empty = np.flatnonzero(np.bincount(splits["train"].labels, minlength=len(classes)) == 0)
    if len(empty):
        raise refused(
            data,
            f"class {classes[empty[0]]!r} has no training image ({len(empty)} empty of {len(classes)}): "
            "add images or remove the class",
        )


def _check_declared(
    data: str, layout: SourceLayout, classes: tuple[str, ...], splits: Mapping[str, Split], choices: Choices
) -> tuple[str, ...]:
    """Compare with the numbers and the names that README.md declares. What is accepted though it differs is said."""
    said = []
    for role, split in splits.items():
        expected = layout.declared_examples(role)
        if expected is None or expected == len(split):
            continue
        what = f"{CARD} declares {expected:,} images of split {layout.names[role]}, the files have {len(split):,}"
        if not choices.accept_incomplete:
            raise refused(
                data,
                f"{what}: fetch the data again, since files of it are missing or of another revision; or go on with "
                f"them, {how_to_choose('accept_incomplete', '')}",
            )
        said.append(f"{what}, which is accepted")
    named = layout.declared.classes.get(choices.label, ())
    if named and sorted(named) != sorted(classes):
        odd = sorted(set(named) ^ set(classes))
        raise refused(
            data,
            f"{CARD} declares {len(named):,} classes, the data has {len(classes):,}, and they differ (for example "
            f"{odd[0]!r}): add what is missing, or correct {CARD}",
        )
    return tuple(said)
