"""A folder of classes without train/ and val/, scored where it lies: its originals, and no copies of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trainer.contract import UserError
from trainer.data.format import INDEX
from trainer.data.making.layout import hidden
from trainer.data.making.layout.splits import roles_of
from trainer.imagenet import class_wnids
from trainer.scoring.data import ScoredSet
from trainer.scoring.found_images import find_files, open_found
from trainer.scoring.members import Member
from trainer.scoring.originals import Originals

OTHER_FORMS = (INDEX, ".parquet", ".tar")  # what is prepared, or read by the preparation


def is_plain_folder(data: str) -> bool:
    """Whether DATA= is a folder whose folders are classes, of which none is named as a split."""
    folder = Path(data).expanduser()
    if not data or not folder.is_dir():
        return False
    for _ in range(len(folder.parts), 64):  # below folders that hold nothing but one folder
        inside = [one for one in folder.iterdir() if not hidden(one.name)]
        folders = [one for one in inside if one.is_dir()]
        if any(roles_of(one.name) for one in folders) or any(one.name.endswith(OTHER_FORMS) for one in inside):
            return False
        if len(folders) != 1:
            return len(folders) > 1
        folder = folders[0]
    return False


def open_plain_folder(data: str, scratch: Path, member: Member) -> ScoredSet:
    """Its images, with the classes of a member, which must know every one of them by name. Raises UserError."""
    found, known = open_found(find_files(data, scratch)), member.card.classes
    classes = known or found.classes
    places = {name: place for place, name in enumerate(classes)}
    names = found.classes
    if not set(names) <= set(places):
        places = {wnid: place for place, wnid in enumerate(class_wnids(classes))}
        names = class_wnids(found.classes)
    if not names or not set(names) <= set(places):
        odd = next(name for name in found.classes if name not in set(classes))
        raise UserError(
            f"DATA={data}: the class folder {odd!r} is none of the {len(classes):,} classes of {member.name} (such as "
            f"{classes[0]!r}): give images of its classes, or other weights"
        )
    labels = np.array([places[name] for name in names], np.int64)[found.labels]
    images = Originals(found, labels)
    lacks = (f"{len(names):,} of {len(classes):,} classes have images",) if len(names) < len(classes) else ()
    return ScoredSet(
        name=found.identity["name"], prefix="val", identity=found.identity, classes=classes, labels=labels,
        open=lambda pixels: images, notes=lacks, unreadable=lambda: images.unreadable,
    )  # fmt: skip
