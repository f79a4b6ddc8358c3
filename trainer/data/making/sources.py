"""Opens what DATA= names as a `Source`: class names, and random access to the encoded images of "train" and "val".

Nothing is decoded here. `layout` says which file is what; the readers are in `source_formats`, `archives` and
`parquet`. `datasets` and the hub's client are imported only when a source that needs them is opened: a warm run never
does.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.contract import UserError
from trainer.data.making.archives import open_archives
from trainer.data.making.hub import download_parquet
from trainer.data.making.layout import CARD, FORMS, NONE, Choices, SourceLayout, how_to_choose, lay_out, refused
from trainer.data.making.listing import walk
from trainer.data.making.parquet import open_parquet
from trainer.data.making.source_formats import (
    DIGITS_SIDE,
    DIGITS_VAL_EVERY,
    Example,
    Split,
    open_digits,
    open_image_folder,
)
from trainer.data.progress import ProgressListener

__all__ = ["Choices", "Example", "Source", "Split", "identify", "open_source"]


@dataclass(frozen=True)
class Source:
    name: str
    classes: tuple[str, ...]
    splits: Mapping[str, Split]  # "train" and "val"
    identity: str  # changes when the content may have changed
    said: tuple[str, ...] = ()  # how files and labels were understood, and every file that was not read


def open_source(
    data: str, choices: Choices = NONE, *, secrets_dir: str = "", progress: ProgressListener | None = None
) -> Source:
    """Open what DATA= names and check it: both splits, no empty class, labels in range. UserError says what is wrong.

    A gated dataset's token is `<secrets_dir>/hf_token`, else what the hub's client finds (HF_TOKEN, `hf auth login`).
    `progress` is told of bytes that are downloaded.
    """
    name, identity = identify(data, choices)
    if data == "digits":
        classes, splits = open_digits()
        _check(data, classes, splits)
        return Source(name, classes, splits, identity)
    folder = Path(data).expanduser()
    if not folder.is_dir():
        folder = download_parquet(data, secrets_dir, progress)
    layout = plan(data, folder, choices)
    said: tuple[str, ...] = ()
    if layout.form == "parquet":
        classes, splits, said = open_parquet(data, folder, layout, choices)
    elif layout.form == "tar":
        classes, splits = open_archives(data, folder, layout)
    else:
        classes, splits = layout.classes, open_image_folder(data, folder, layout)
    _check(data, classes, splits)
    said = said + _check_declared(data, layout, classes, splits, choices)
    return Source(name, classes, splits, identity, (*layout.said, *said, *layout.table()))


def identify(data: str, choices: Choices = NONE) -> tuple[str, str]:
    """The name and identity of what DATA= names, without opening it. For a hub id, the hub is not asked."""
    if data == "digits":
        return "digits", f"digits {DIGITS_SIDE}px val-every-{DIGITS_VAL_EVERY}"
    folder = Path(data).expanduser()
    if folder.is_dir():
        layout = plan(data, folder, choices)
        listing = [(path, (folder / path).stat().st_size) for path in layout.files]
        content = json.dumps(listing) + _decided(layout.decided)
        return _slug(folder.resolve().name), hashlib.sha256(content.encode()).hexdigest()
    if folder.exists():
        raise refused(data, f"this is a file: give the folder that holds it. Known forms: {FORMS}")
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", data):
        return _slug(data.split("/")[1]), f"hub {data}{_decided(choices.content)}"
    raise UserError(f"DATA={data} does not exist on this machine and is not a Hugging Face id. Known forms: {FORMS}")


def _decided(facts: Mapping[str, object]) -> str:
    return f" {json.dumps(facts, sort_keys=True)}" if facts else ""


def plan(data: str, folder: Path, choices: Choices) -> SourceLayout:
    """Which file of a folder is what. Raises UserError where that is not sure."""
    listing = walk(folder)
    card = (folder / CARD).read_text(errors="replace") if listing.get(CARD, -1) >= 0 else ""
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
    named = layout.declared.classes.get(choices.label_column or "label", ())
    if named and sorted(named) != sorted(classes):
        odd = sorted(set(named) ^ set(classes))
        raise refused(
            data,
            f"{CARD} declares {len(named):,} classes, the data has {len(classes):,}, and they differ (for example "
            f"{odd[0]!r}): add what is missing, or correct {CARD}",
        )
    return tuple(said)
