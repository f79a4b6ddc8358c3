"""The layout of image folders: `train/<class>/<image>`, also below one folder or with one folder within each class."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainer.data.making.layout.plan import (
    FORMS,
    KEYWORDS,
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
from trainer.data.making.layout.splits import SplitFiles, choose, left_groups, roles_of
from trainer.data.making.layout.truth import find_truth
from trainer.text import show_name

IMAGE_ENDINGS = (
    ".jpeg", ".jpg", ".jpe", ".jfif", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp", ".gif",
)  # fmt: skip
OTHER_ENDING = "no ending of an image"
BESIDE = "images outside of the splits"


@dataclass
class Tree:
    """What lies below a split's folder."""

    classes: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # class folder: images
    written: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # class: how its folders are called
    middles: set[str] = field(default_factory=set)  # the folders between class and image, "" for none
    flat: list[str] = field(default_factory=list)  # images in no class folder
    deep: str = ""  # an example of an image with folders between


def is_image(path: str) -> bool:
    return path.lower().endswith(IMAGE_ENDINGS)


def folder_groups(images: Sequence[str]) -> list[SplitFiles]:
    """The folders that hold splits: the topmost ones, or those below the only folder with images.

    Images beside them are a group without a name.
    """
    base, stray = "", list[str]()
    while True:
        tops: dict[str, list[str]] = defaultdict(list)
        for path in images:
            top, slash, _ = path[len(base) :].partition("/")
            tops[top if slash else ""].append(path)
        stray += tops.pop("", [])
        only = next(iter(tops)) if len(tops) == 1 else ""
        if not only or (roles_of(only) and not _holds_splits(f"{base}{only}/", images)):
            break
        base, images = f"{base}{only}/", tops[only]
    where = base.rstrip("/") or "."
    groups = [SplitFiles(where, top, tuple(paths), roles_of(top)) for top, paths in sorted(tops.items())]
    return groups + ([SplitFiles(where, "", tuple(stray), frozenset())] if stray else [])


def _holds_splits(folder: str, images: Sequence[str]) -> bool:
    """Whether both splits lie below this folder, though its own name has the word of one: imagenet-train-val/."""
    below = {path[len(folder) :].split("/")[0] for path in images if path.startswith(folder)}
    return len({role for name in below for role in roles_of(name)}) == len(KEYWORDS)


def lay_out_folders(
    data: str,
    listing: Listing,
    groups: Sequence[SplitFiles],
    declared: Declared,
    choices: Choices,
    left: Mapping[str, list[str]],
) -> SourceLayout:
    """Choose the splits of an image folder, and find the class of every image. Raises UserError with the fix."""
    if not any(group.split for group in groups):
        raise refused(
            data,
            "nothing recognised in this folder (looked for index.json, *.parquet with train or validation in their "
            f"names, folders train/ and val/ or validation/). Known forms: {FORMS}. If the folders here are classes, "
            "put them below train/, and some images of each below val/",
        )
    left = dict(left)
    if stray := [path for group in groups if not group.split for path in group.files]:
        left[BESIDE] = stray
    groups = [group for group in groups if group.split]
    if not any(group.roles or choices.split(role) for group in groups for role in ("train", "val")):
        here = [group.split for group in groups if group.split]
        raise refused(
            data,
            "split train is missing: no folder is named train or training. If the folders here are classes "
            f"({few(here)}), put them below train/, and some images of each below val/. If they are splits, "
            f"choose one of them, {how_to_choose('train_split', here[0])}, and likewise --val-split",
        )
    chosen = choose(data, groups, choices)
    folders = {role: [_folder(group) for group in found] for role, found in chosen.items()}
    _check_links(data, listing, folders)
    trees = {role: _tree(data, found) for role, found in chosen.items()}
    _check_depth(data, trees)
    _check_flat(data, trees, folders)
    val = trees["val"]
    together = (
        len(val.classes) == 1 and len(trees["train"].classes) > 1 and not set(val.classes) & set(trees["train"].classes)
    )
    truth = {"val": find_truth(data, listing, folders["val"][0])} if val.flat or together else {}
    _check_classes(data, listing, trees, folders, truth)
    names = tuple(sorted(trees["train"].classes))
    splits, labels = _labelled(names, trees, truth)
    split_names = {role: "+".join(group.split for group in found) for role, found in chosen.items()}
    used = {path for paths in truth.values() for path in paths}
    left = {reason: [path for path in paths if path not in used] for reason, paths in left.items()}
    said = [
        f"images of {role} lie in one more folder {next(iter(tree.middles))}/ of each class, and are read"
        for role, tree in trees.items()
        if role not in truth and tree.middles != {""}
    ]
    said += [
        f"{len(found)} class folders of {role} are called {name}, in two forms of Unicode: they are read as one class"
        for role, tree in trees.items()
        for name, found in tree.written.items()
        if role not in truth and len(found) > 1
    ]
    return SourceLayout(
        "folder", splits, split_names, left | left_groups(groups, chosen), names, labels, truth, declared, tuple(said)
    )


def _labelled(
    names: Sequence[str], trees: Mapping[str, Tree], truth: Mapping[str, Sequence[str]]
) -> tuple[dict[str, tuple[str, ...]], dict[str, npt.NDArray[np.int64]]]:
    """The images of each split by class and name, and their labels, which only `truth` knows for some."""
    number = {name: i for i, name in enumerate(names)}
    splits, labels = {}, {}
    for role, tree in trees.items():
        if role in truth:
            splits[role] = tuple(sorted(path for paths in (tree.flat, *tree.classes.values()) for path in paths))
            continue
        by_class = [(number[name], sorted(tree.classes[name])) for name in sorted(tree.classes)]
        splits[role] = tuple(path for _, paths in by_class for path in paths)
        labels[role] = np.repeat([label for label, _ in by_class], [len(paths) for _, paths in by_class])
    return splits, labels


@lru_cache(1 << 16)
def class_name(folder: str) -> str:
    """The name of a class folder as text. Accents have several forms, and a Mac writes another one than Linux."""
    return unicodedata.normalize("NFC", show_name(Path(folder)))


def _folder(group: SplitFiles) -> str:
    return f"{group.split}/" if group.config == "." else f"{group.config}/{group.split}/"


def _below(listing: Iterable[str], folders: Mapping[str, Sequence[str]], role: str) -> list[str]:
    return [path for path in listing if path.startswith(tuple(folders[role]))]


def _check_links(data: str, listing: Listing, folders: Mapping[str, Sequence[str]]) -> None:
    for role in folders:
        if nowhere := sorted(path for path in _below(listing, folders, role) if listing[path] == NOWHERE):
            raise refused(
                data,
                f"{len(nowhere):,} links in split {role} lead nowhere ({few(nowhere)}): fetch or mount what they lead "
                "to, or remove them",
            )


def _tree(data: str, groups: Sequence[SplitFiles]) -> Tree:
    tree = Tree()
    for group in groups:
        start = len(_folder(group))
        for path in group.files:
            top, *middle = path[start:].split("/")
            if not middle:
                tree.flat.append(path)
                continue
            tree.classes[class_name(top)].append(path)
            tree.written[class_name(top)].add(top)
            tree.middles.add("/".join(middle[:-1]))
            tree.deep = tree.deep or (path if len(middle) > 1 else "")
    return tree


def _check_depth(data: str, trees: Mapping[str, Tree]) -> None:
    for role, tree in trees.items():
        if len(tree.middles) > 1:
            raise refused(
                data,
                f"images of split {role} lie at different depths, or in folders within the class folders (such as "
                f"{tree.deep}): move each to <class>/<image>, since a folder within a class may be another class",
            )
        if tree.flat and tree.classes:
            raise refused(
                data,
                f"{len(tree.flat):,} images of split {role} lie beside its class folders ({few(tree.flat)}): move them "
                "into their classes, or out of the folder",
            )


def _check_flat(data: str, trees: Mapping[str, Tree], folders: Mapping[str, Sequence[str]]) -> None:
    if flat := trees["train"].flat:
        raise refused(
            data,
            f"the {len(flat):,} images of split train lie in no class folders ({few(flat)}): sort them into "
            f"{folders['train'][0]}<class>/<image>",
        )


def _check_classes(
    data: str,
    listing: Listing,
    trees: Mapping[str, Tree],
    folders: Mapping[str, Sequence[str]],
    truth: Mapping[str, Sequence[str]],
) -> None:
    for role, tree in trees.items():
        if role in truth:
            continue
        for path in _below(listing, folders, role):
            start = next(len(folder) for folder in folders[role] if path.startswith(folder))
            name, slash, _ = path[start:].partition("/")
            if slash and not hidden(name) and class_name(name) not in tree.classes:
                raise refused(
                    data,
                    f"class folder {path[: start + len(name)]} has no image ({' '.join(IMAGE_ENDINGS)}): add images or "
                    "remove the folder",
                )
    train, val = trees["train"].classes, trees["val"].classes
    if "val" not in truth and set(train) != set(val):
        odd = sorted(set(train) ^ set(val))
        raise refused(
            data,
            f"train has {len(train):,} class folders, val has {len(val):,}, and they differ (for example {odd[0]!r}): "
            "both need the same folders, <class>/<image>",
        )
