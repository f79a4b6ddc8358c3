"""Opens what DATA= names as a `Source`: class names, and random access to the encoded images of "train" and "val".

Nothing is decoded here, and the readers are in `source_formats` and `parquet`. `datasets` and the hub's client are
imported only when a source that needs them is opened: a warm run never does.
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
from trainer.data.making.hub import download_parquet
from trainer.data.making.parquet import open_parquet, parquet_files
from trainer.data.making.source_formats import (
    DIGITS_SIDE,
    DIGITS_VAL_EVERY,
    FORMS,
    Example,
    Split,
    image_files,
    open_digits,
    open_image_folder,
)
from trainer.data.progress import ProgressListener

__all__ = ["Example", "Source", "Split", "identify", "open_source"]


@dataclass(frozen=True)
class Source:
    name: str
    classes: tuple[str, ...]
    splits: Mapping[str, Split]  # "train" and "val"
    identity: str  # changes when the content may have changed


def open_source(data: str, *, secrets_dir: str = "", progress: ProgressListener | None = None) -> Source:
    """Open what DATA= names and check it: both splits, no empty class, labels in range. UserError says what is wrong.

    A gated dataset's token is `<secrets_dir>/hf_token`, else what the hub's client finds (HF_TOKEN, `hf auth login`).
    `progress` is told of bytes that are downloaded.
    """
    name, identity = identify(data)
    if data == "digits":
        classes, splits = open_digits()
    elif (folder := Path(data).expanduser()).is_dir():
        if _has_parquet(folder):
            classes, splits = open_parquet(data, parquet_files(folder))
        else:
            classes, splits = open_image_folder(data, folder)
    else:
        classes, splits = open_parquet(data, parquet_files(download_parquet(data, secrets_dir, progress)))
    _check(data, classes, splits)
    return Source(name, classes, splits, identity)


def identify(data: str) -> tuple[str, str]:
    """The name and identity of what DATA= names, without opening it. For a hub id, the hub is not asked."""
    if data == "digits":
        return "digits", f"digits {DIGITS_SIDE}px val-every-{DIGITS_VAL_EVERY}"
    folder = Path(data).expanduser()
    if folder.is_dir():
        files = parquet_files(folder) if _has_parquet(folder) else image_files(data, folder)
        listing = [(str(file.relative_to(folder)), file.stat().st_size) for split in files.values() for file in split]
        return _slug(folder.resolve().name), hashlib.sha256(json.dumps(listing).encode()).hexdigest()
    if folder.exists():
        raise UserError(f"DATA={data} is a file: give the folder that holds it. Known forms: {FORMS}")
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", data):
        return _slug(data.split("/")[1]), f"hub {data}"
    raise UserError(f"DATA={data} does not exist on this machine and is not a Hugging Face id. Known forms: {FORMS}")


def _has_parquet(folder: Path) -> bool:
    return any(parquet_files(folder).values())


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9_.-]+", "-", text.lower()).strip("-.") or "data"


def _check(data: str, classes: tuple[str, ...], splits: Mapping[str, Split]) -> None:
    for name, split in splits.items():
        labels = split.labels
        if len(labels) == 0:
            raise UserError(f"DATA={data}: split {name} has no images: put images there")
        bad = np.flatnonzero((labels < 0) | (labels >= len(classes)))
        if len(bad):
            raise UserError(
                f"DATA={data}: label {labels[bad[0]]} of image {bad[0]} in split {name} is out of range ({len(bad)} "
                f"such): with {len(classes)} classes, labels are 0 to {len(classes) - 1}; correct or remove those rows"
            )
    empty = np.flatnonzero(np.bincount(splits["train"].labels, minlength=len(classes)) == 0)
    if len(empty):
        raise UserError(
            f"DATA={data}: class {classes[empty[0]]!r} has no training image ({len(empty)} empty of {len(classes)}): "
            "add images or remove the class"
        )
