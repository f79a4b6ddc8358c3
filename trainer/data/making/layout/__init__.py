"""Which files of a source are what: one function from the names and sizes of all files to the plan of a source.

It does not care where the names come from, so a folder and the hub's listing give the same answer. Nothing is
downloaded that is then refused, and every file is either read or left out for a reason.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

from trainer.data.making.layout.archives import ARCHIVES, check_unpacked, lay_out_archives
from trainer.data.making.layout.card import CARD, CardConfig, check_images, read_card
from trainer.data.making.layout.folders import BESIDE, OTHER_ENDING, folder_groups, is_image, lay_out_folders
from trainer.data.making.layout.plan import (
    FORMS,
    NOWHERE,
    OPTIONS,
    Choices,
    Declared,
    Listing,
    SourceLayout,
    few,
    hidden,
    how_to_choose,
    refused,
)
from trainer.data.making.layout.splits import roles_of
from trainer.data.making.layout.tables import declared_of, lay_out_tables, table_groups

__all__ = [
    "CARD",
    "FORMS",
    "LAYOUT_RULES",
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
UNUSED = {  # form: choices that mean nothing to it
    "parquet": (),
    "folder": ("image_column", "label_column"),
    "tar": ("config", "train_split", "val_split", "image_column", "label_column"),
}
DANGLING = "links that lead nowhere"
LAYOUT_RULES = (
    3  # raise it when the same names and sizes give another plan: what was known of a source is then looked up anew
)
HIDDEN = "hidden files, and folders of the system"


def lay_out(data: str, listing: Listing, choices: Choices = NONE, *, card: str = "") -> SourceLayout:
    """The plan of a source. `data` is for messages, `card` the text of its README.md, if it has one.

    Raises UserError, with the question and the option that answers it, where the names allow two answers, and for what
    is missing: a split, shards, classes, labels.
    """
    layout = _laid_out(data, listing, choices, read_card(data, card))
    if idle := [name for name in UNUSED[layout.form] if choices.given.get(name)]:
        raise refused(data, f"{OPTIONS[idle[0]]} does not apply to such data ({layout.form}): leave it out")
    return replace(layout, choices=choices)


@lru_cache(1 << 16)
def _is_in_hidden(folder: str) -> bool:
    return any(hidden(part) for part in folder.split("/"))


def _sort_out(listing: Listing) -> tuple[list[str], list[str], dict[str, list[str]]]:
    """Parquet files, images, and by reason what is neither, each sorted by name."""
    tables, images = [], []
    left: dict[str, list[str]] = defaultdict(list)
    for path in sorted(listing):
        folder, _, name = path.rstrip("/").rpartition("/")
        if hidden(name) or _is_in_hidden(folder):
            left[HIDDEN].append(path)
        elif listing[path] == NOWHERE and (roles_of(name) or not is_image(name)):
            left[DANGLING].append(path)
        elif path.endswith("/"):
            left["empty folders"].append(path)
        elif path.endswith(".parquet"):
            tables.append(path)
        elif is_image(path):
            images.append(path)
        else:
            left[OTHER_ENDING].append(path)
    return tables, images, dict(left)


def _laid_out(data: str, listing: Listing, choices: Choices, configs: Mapping[str, CardConfig]) -> SourceLayout:
    tables, images, left = _sort_out(listing)
    dangling = left.get(DANGLING, ())
    if nowhere := [path for path in dangling if path.endswith(".parquet") or roles_of(path.rpartition("/")[2])]:
        raise refused(data, f"{few(nowhere)} lead nowhere: fetch or mount what they lead to, or remove the links")
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
        has = {role for group in folder_splits for role in group.roles}
        check_unpacked(data, listing, has | {role for role in ARCHIVES if has and choices.split(role)})
        if tables:
            left["parquet files outside of the splits"] = tables
        layout = lay_out_folders(data, listing, folder_splits, declared_of(configs, choices.config), choices, left)
        check_images(data, configs, choices, images, layout.splits)
        return layout
    if images:
        left[BESIDE] = images
    return lay_out_tables(data, table_splits, configs, choices, left)
