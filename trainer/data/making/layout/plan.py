"""What a layout is made from and what it says: names and sizes of files, the user's choices, the plan of a source.

Standard library and numpy only. Nothing here reads a file or knows where the names come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from trainer.contract import UserError
from trainer.text import show_name

# Path, with "/" between folders: bytes. A path that ends in "/" is an empty folder, or one that nobody looks into.
Listing = Mapping[str, int]
NOWHERE = -1  # in place of the bytes: a link that leads nowhere

Form = Literal["folder", "parquet", "tar"]
OPTIONS = {  # a field of `Choices`: its option
    "config": "--data-config",
    "train_split": "--train-split",
    "val_split": "--val-split",
    "image_column": "--image-column",
    "label_column": "--label-column",
    "accept_incomplete": "--accept-incomplete",
}
KEYWORDS = {  # of splits: those of `datasets`, which calls our "val" "validation"
    "train": ("train", "training"),
    "val": ("validation", "val", "valid", "dev"),
}
FORMS = (
    "digits | a Hugging Face id such as ILSVRC/imagenet-1k | a folder of parquet files (train-*.parquet, "
    "validation-*.parquet) | an image folder (train/<class>/*.JPEG, val/<class>/*.JPEG) | ImageNet's own archives "
    "(ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar) | a prepared folder (index.json)"
)


@dataclass(frozen=True)
class Choices:
    """What the user says about a source. What is left empty is as the files say, and as `datasets` reads them."""

    config: str = ""
    train_split: str = ""  # names of splits, with "+" between them
    val_split: str = ""
    image_column: str = ""
    label_column: str = ""
    accept_incomplete: bool = False

    def split(self, role: str) -> str:
        return {"train": self.train_split, "val": self.val_split}[role]

    @property
    def given(self) -> dict[str, object]:
        """What the user said, and nothing else."""
        return {name: value for name, value in asdict(self).items() if value}

    @property
    def image(self) -> str:
        return self.image_column or "image"

    @property
    def label(self) -> str:
        return self.label_column or "label"


@dataclass(frozen=True)
class Declared:
    """What README.md says of a config of the data."""

    examples: Mapping[str, int] = field(default_factory=dict)  # split: how many
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # column: names of its labels


@dataclass(frozen=True, eq=False)
class SourceLayout:
    """The plan of a source: which files are read, in which order, and why the others are not."""

    form: Form
    splits: Mapping[str, Sequence[str]]  # "train" and "val": paths in the order in which they are read
    names: Mapping[str, str]  # "train" and "val": how the source calls the split
    left_out: Mapping[str, Sequence[str]]  # reason: paths
    classes: tuple[str, ...] = ()  # of a folder: names in the order of their labels
    labels: Mapping[str, npt.NDArray[np.int64]] = field(default_factory=dict)  # of a folder: one for each path
    truth: Mapping[str, Sequence[str]] = field(default_factory=dict)  # split without class folders: its label files
    declared: Declared = field(default_factory=Declared)
    said: tuple[str, ...] = ()  # what a user should know of how the files were understood
    choices: Choices = field(default_factory=Choices)

    @property
    def decided(self) -> dict[str, object]:
        """What decides the content besides the files of each role: columns with other names, and declared classes.

        The words of the user are not in it: the same files are the same content, whoever has chosen them.
        """
        columns = {"image_column": (self.choices.image, "image"), "label_column": (self.choices.label, "label")}
        other: dict[str, object] = {name: used for name, (used, usual) in columns.items() if used != usual}
        return other | ({"classes": dict(self.declared.classes)} if self.declared.classes else {})

    def declared_examples(self, role: str) -> int | None:
        """How many images README.md declares for a split. None if it says nothing."""
        names = self.names[role].split("+")
        found = [self.declared.examples.get(name) for name in names]
        if None in found and not (len(names) == 1 and is_exactly(names[0], role)):
            return None
        if None in found:  # a folder calls it val where README.md says validation
            found = [count for name, count in self.declared.examples.items() if is_exactly(name, role)]
        return sum(count for count in found if count is not None) if found else None

    def table(self) -> tuple[str, ...]:
        """Every file that was seen: how many are read, and how many are left out, by reason and with examples."""
        read = ", ".join(f"{len(paths):,} as {role} ({self.names[role]})" for role, paths in self.splits.items())
        told = sorted({path for paths in self.truth.values() for path in paths})
        lines = [f"files read: {read}", *([f"classes of the validation: {few(told)}"] if told else [])]
        lines += [
            f"not read: {len(paths):,}, {reason} ({few(paths)})" for reason, paths in self.left_out.items() if paths
        ]
        return tuple(show_name(line) for line in lines)


def refused(data: str, what: str) -> UserError:
    return UserError(f"DATA={data}: {show_name(what)}")


def is_exactly(name: str, role: str) -> bool:
    return name.lower() in KEYWORDS[role]


def how_to_choose(choice: str, value: str) -> str:
    """How a user gives a choice. Training itself has no such options: the data is prepared with it first."""
    shown = f"{OPTIONS[choice]} {value}".strip()
    return f'make prepare DATA=… STORE=… ARGS="{shown}"'


def few(paths: Sequence[str], count: int = 3) -> str:
    """Some examples, and how many more there are."""
    more = f" and {len(paths) - count:,} more" if len(paths) > count else ""
    return ", ".join(paths[:count]) + more


# Of file systems, editors, archives and version control.
SYSTEM_FOLDERS = frozenset(
    {
        "@eadir",
        "__macosx",
        "__pycache__",
        "lost+found",
        "$recycle.bin",
        "system volume information",
        "#recycle",
        "#snapshot",
    }
)


def hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS
