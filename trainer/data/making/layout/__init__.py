"""Which files of a source are what: one function from the names and sizes of all files to the plan of a source.

It does not care where the names come from, so a folder and the hub's listing give the same answer. Nothing is
downloaded that is then refused, and every file is either read or left out for a reason.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

from trainer.data.making.layout.archives import ARCHIVES, lay_out_archives
from trainer.data.making.layout.card import CARD, CardConfig, read_card
from trainer.data.making.layout.folders import BESIDE, OTHER_ENDING, folder_groups, is_image, lay_out_folders
from trainer.data.making.layout.plan import (
    FORMS,
    NOWHERE,
    Choices,
    Declared,
    Listing,
    SourceLayout,
    few,
    hidden,
    how_to_choose,
    refused,
)
from trainer.data.making.layout.tables import declared_of, lay_out_tables, table_groups

__all__ = [
    "CARD",
    "FORMS",
    "NONE",
    "NOWHERE",
    "Choices",
    "Declared",
    "Listing",
    "SourceLayout",
    "few",
    "hidden",
    "how_to_choose",
    "is_image",
    "lay_out",
    "refused",
]  # fmt: skip

NONE = Choices()
HIDDEN = "hidden files, and folders of the system"


def lay_out(data: str, listing: Listing, choices: Choices = NONE, *, card: str = "") -> SourceLayout:
    """The plan of a source. `data` is for messages, `card` the text of its README.md, if it has one.

    Raises UserError, with the question and the option that answers it, where the names allow two answers, and for what
    is missing: a split, shards, classes, labels.
    """
    return replace(_laid_out(data, listing, choices, read_card(data, card)), choices=choices)


def _laid_out(data: str, listing: Listing, choices: Choices, configs: Mapping[str, CardConfig]) -> SourceLayout:
    tables, images = [], []
    left: dict[str, list[str]] = defaultdict(list)
    for path in sorted(listing):
        if any(hidden(part) for part in path.rstrip("/").split("/")):
            left[HIDDEN].append(path)
        elif path.endswith("/"):
            left["empty folders"].append(path)
        elif path.endswith(".parquet"):
            tables.append(path)
        elif is_image(path):
            images.append(path)
        else:
            left[OTHER_ENDING].append(path)
    table_splits = table_groups(data, tables, configs, choices)
    folder_splits = folder_groups(images)
    chosen = {name for split in (choices.train_split, choices.val_split) for name in split.split("+") if name}
    in_tables = any(group.roles or group.split in chosen for group in table_splits)
    in_folders = any(group.roles or group.split in chosen for group in folder_splits)
    if in_tables and in_folders:
        raise refused(
            data,
            f"there are parquet files (such as {tables[0]}) and folders of images (such as {images[0]}), and either "
            "may be meant: give the folder that holds only one of them",
        )
    if not in_tables and not in_folders and any(path.rpartition("/")[2] in ARCHIVES.values() for path in listing):
        return lay_out_archives(data, listing, left | {BESIDE: images})
    if not in_tables and (in_folders or not tables):
        if tables:
            left["parquet files outside of the splits"] = tables
        declared = declared_of(configs, choices.config)
        return lay_out_folders(data, listing, folder_splits, declared, choices, left)
    if nowhere := [path for path in tables if listing[path] == NOWHERE]:
        raise refused(data, f"{nowhere[0]} is a link that leads nowhere: fetch or mount what it leads to, or remove it")
    if images:
        left[BESIDE] = images
    return lay_out_tables(data, table_splits, configs, choices, left)
