"""Opens labelled images that are one split: a folder of classes, or parquet files, on this machine or on the hub.

`making.forms.sources` opens what has both splits; sets for tests have one, under any name.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainer.contract import UserError
from trainer.data.making.faults import naming_the_file
from trainer.data.making.forms.parquet import open_parquet
from trainer.data.making.forms.source_formats import FolderSplit, Split
from trainer.data.making.forms.sources import identify
from trainer.data.making.layout import CARD, NOWHERE, Choices, Listing, SourceLayout, few, hidden, is_image, refused
from trainer.data.making.layout.card import read_card
from trainer.data.making.layout.folders import class_name
from trainer.data.making.layout.listing import walk
from trainer.data.making.layout.splits import SplitFiles, check_shards
from trainer.data.making.layout.tables import declared_of, table_groups
from trainer.data.making.revision.hub import find_revision, read_text_file, whole_snapshot
from trainer.data.making.revision.manifest import SOURCES, SourceMemory

LABEL_COLUMNS = ("label", "wnid")  # the second: of axiong/imagenet-r
FOR_TESTS = ("validation", "val", "test")  # names of splits; ImageNet's own test has no labels


@dataclass(frozen=True, eq=False)
class FoundFiles:
    """The files of a folder, or of one commit of a data set on the hub."""

    data: str  # for messages
    name: str
    listing: Listing
    fetch: Callable[[Sequence[str]], Path]  # the folder that has these files
    commit: str = ""  # of the hub
    card: str = ""  # the text of README.md

    def identity(self, paths: Sequence[str]) -> dict[str, str]:
        """As a manifest names data. The fingerprint is of names and sizes: no image is read for it."""
        rows = [(path, self.listing[path]) for path in sorted(paths)]
        digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
        return {"name": self.name, "version": "", "fingerprint": digest[:16], "sha256": "", "commit": self.commit}


@dataclass(frozen=True, eq=False)
class FoundImages:
    """The images of one split. `labels` are places in `classes`."""

    images: Split
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    identity: Mapping[str, str]
    names: Callable[[], Sequence[str]]  # of the image files: all of them, and no image is read for it


def find_files(data: str, scratch: Path, secrets_dir: str = "", workers: int = 0) -> FoundFiles:
    """What DATA= names. The hub is asked for a listing, and for files when they are fetched. Raises UserError."""
    name, form = identify(data)
    if form == "folder":
        folder = Path(data).expanduser()
        listing = walk(folder)
        card = (folder / CARD).read_text("utf-8", errors="replace") if listing.get(CARD, NOWHERE) >= 0 else ""
        return FoundFiles(data, name, listing, lambda paths: folder, card=card)
    if form != "hub":
        raise refused(data, "these images come with the trainer: name a folder of images, or a data set of the hub")
    revision = find_revision(data, secrets_dir)
    listing = {file.path: file.bytes for file in revision.files}
    memory = SourceMemory(scratch / SOURCES)
    return FoundFiles(
        data, name, listing, lambda paths: whole_snapshot(revision, {"val": list(paths)}, memory, workers)[0],
        revision.commit, read_text_file(revision, CARD) if CARD in listing else "",
    )  # fmt: skip


def open_found(files: FoundFiles, below: str = "") -> FoundImages:
    """The images whose paths begin with `below`, by class folder or by the label of a row. Raises UserError."""
    images, tables = files_of_images(files, below), [path for path in files.listing if path.endswith(".parquet")]
    if images and tables:
        raise refused(
            files.data,
            f"there are parquet files (such as {tables[0]}) and images (such as {images[0]}), and either may be meant: "
            "give the folder that holds only one of them",
        )
    if tables:
        return _open_tables(files, sorted(tables))
    if not images:
        others = sorted(path for path in files.listing if not path.endswith("/"))
        raise refused(
            files.data,
            f"there is no image and no parquet file in {below or 'it'}"
            + (f" ({len(others):,} other files, such as {others[0]})" if others else "")
            + ": give the folder with the images; archives must be unpacked first",
        )
    return _open_classes(files, images)


def files_of_images(files: FoundFiles, below: str = "") -> list[str]:
    """The images whose paths begin with `below`, sorted. Raises UserError for links that lead nowhere."""
    found = sorted(
        path for path in files.listing
        if path.startswith(below) and is_image(path) and not any(map(hidden, path.split("/")))
    )  # fmt: skip
    if nowhere := [path for path in found if files.listing[path] == NOWHERE]:
        raise refused(files.data, f"{len(nowhere):,} links lead nowhere ({few(nowhere)}): fetch what they lead to")
    return found


def class_folders(data: str, images: Sequence[str]) -> dict[str, list[str]]:
    """The images of each class folder, sorted by its name. Folders around all of them do not matter.

    Raises UserError where images lie beside the class folders, or deeper.
    """
    parts = [path.split("/") for path in images]
    start = 0
    while all(len(part) > start + 2 for part in parts) and len({part[start] for part in parts}) == 1:
        start += 1
    if odd := [path for path, part in zip(images, parts, strict=True) if len(part) != start + 2]:
        raise refused(
            data,
            f"{len(odd):,} of {len(images):,} images do not lie in a class folder, or lie deeper in it ({few(odd)}): "
            "give the folder whose folders are the classes, <class>/<image>",
        )
    found: dict[str, list[str]] = defaultdict(list)
    for path, part in zip(images, parts, strict=True):
        found[class_name(part[start])].append(path)
    return dict(sorted(found.items()))


def _open_classes(files: FoundFiles, images: Sequence[str]) -> FoundImages:
    by_class = class_folders(files.data, images)
    paths = [path for of_class in by_class.values() for path in of_class]
    labels = np.repeat(np.arange(len(by_class)), [len(of_class) for of_class in by_class.values()])
    split = FolderSplit(files.fetch(paths), paths, labels)
    return FoundImages(split, labels, tuple(by_class), files.identity(paths), lambda: paths)


def _open_tables(files: FoundFiles, tables: Sequence[str]) -> FoundImages:
    configs = read_card(files.data, files.card)
    group = _only_split(files.data, [one for one in table_groups(files.data, tables, configs, Choices()) if one.split])
    check_shards(files.data, "val", group.files, accept_incomplete=False)
    folder = files.fetch(group.files)
    layout = SourceLayout(
        "parquet", {"train": group.files}, {"train": group.split}, {}, declared=declared_of(configs, group.config)
    )
    choices = Choices(label_column=_label_column(files.data, folder / group.files[0]))
    classes, splits, _ = open_parquet(files.data, folder, layout, choices)
    labels = splits["train"].labels
    if odd := np.flatnonzero((labels < 0) | (labels >= len(classes))).tolist():
        raise refused(
            files.data,
            f"label {labels[odd[0]]} of image {odd[0]} is out of range ({len(odd):,} such): labels are 0 to "
            f"{len(classes) - 1}; the labels of a test that nobody publishes are of no use here",
        )
    return FoundImages(
        splits["train"], labels, classes, files.identity(group.files),
        cache(lambda: [name for path in group.files for name in _names_in_table(folder / path)]),
    )  # fmt: skip


def _names_in_table(path: Path) -> list[str]:
    import pyarrow.parquet as pq

    with naming_the_file(path, "the names of its images"), pq.ParquetFile(path) as file:
        column = file.read(columns=["image.path"])["image"].combine_chunks()
        return [name or "" for name in column.field("path").to_pylist()]


def _only_split(data: str, groups: Sequence[SplitFiles]) -> SplitFiles:
    """The only split, or the one that is named as a test. Raises UserError where several may be meant."""
    for name in FOR_TESTS:
        if len(groups) > 1 and len(named := [group for group in groups if group.split.lower() == name]) == 1:
            return named[0]
    if len(groups) != 1:
        shown = few([f"{group.split} ({len(group.files):,} files)" for group in groups], 12)
        raise refused(data, f"it has several splits, {shown}: give a folder with the parquet files of one")
    return groups[0]


def _label_column(data: str, path: Path) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).names
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a readable parquet file ({error}): fetch it again") from error
    found = next((name for name in LABEL_COLUMNS if name in names), "")
    if not found:
        raise refused(data, f"{path.name} has no column {' or '.join(LABEL_COLUMNS)}, only {names}: rename the column")
    return found
