"""What the user typed becomes a list of images to look at: files, folders, patterns, addresses, standard input.

Nothing is read here but the listings of folders, with the rules of preparation.
"""

from __future__ import annotations

import glob
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from trainer.contract import UserError
from trainer.text import show_name

STANDARD_INPUT = "-"
WHAT_TO_TYPE = "name an image, a folder, a pattern such as 'photos/*.jpg', an https:// address, or - for standard input"


@dataclass(frozen=True)
class ImageSource:
    """Where one image comes from. `address` is the path or the URL; `name` is what people are told."""

    kind: Literal["file", "url", "standard input"]
    address: str
    name: str


@dataclass(frozen=True)
class Sources:
    """All that was typed, each image once. `folder`: the first folder or pattern, "" where only single images are."""

    images: tuple[ImageSource, ...]
    folder: str = ""
    left_out: int = 0  # files of folders that are no images by their names


def find_sources(typed: Sequence[str]) -> Sources:
    """Raises UserError for what does not exist, for a folder or a pattern without an image, and for other addresses."""
    found: dict[str, ImageSource] = {}
    folder, left_out = "", 0
    if not typed:
        raise UserError(f"no image is named: {WHAT_TO_TYPE}; for example make predict IMAGE=cat.jpg")
    for text in typed:
        if text == STANDARD_INPUT:
            found[text] = _standard_input()
        elif scheme := re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text):
            found[text] = _address(text, scheme[1])
        else:
            images, others, is_single = _files(text)
            found |= {path: ImageSource("file", path, show_name(path)) for path in images}
            left_out += others
            folder = folder or ("" if is_single else text)
    return Sources(tuple(found.values()), folder, left_out)


def _standard_input() -> ImageSource:
    if sys.stdin is None or sys.stdin.isatty():
        raise UserError("- reads an image from standard input, and nothing is piped there: … | make predict IMAGE=-")
    return ImageSource("standard input", STANDARD_INPUT, "standard input")


def _address(text: str, scheme: str) -> ImageSource:
    if scheme.lower() not in ("http", "https"):
        advice = "name the path of the file" if scheme.lower() == "file" else "copy the image here first"
        raise UserError(f"{show_address(text)} is not fetched: an address begins with https:// or http://; {advice}")
    if "@" in _authority(text):
        raise UserError(
            f"{show_address(text)} is not fetched: a password in an address is seen by everybody on this machine; "
            "fetch the image yourself, and name the file"
        )
    return ImageSource("url", text, show_address(text))


def show_address(url: str) -> str:
    """An address without what may be secret in it: a user's name, a password, and the query, where signatures are."""
    head, mark, _ = url.partition("#")[0].partition("?")
    authority = _authority(url)
    shown = head.replace(authority, authority.rpartition("@")[2], 1) if "@" in authority else head
    return show_name(shown) + "?…" * bool(mark)


def _authority(url: str) -> str:
    try:
        return urlsplit(url).netloc
    except ValueError as error:
        raise UserError(f"{show_name(url.partition('?')[0])} is no address ({error}): correct it") from error


def _files(text: str) -> tuple[list[str], int, bool]:
    """The images that a path or a pattern stands for, how many other files are left out, and whether it is one file."""
    if "\0" in text or not text.strip():
        raise UserError(f"{show_name(text)!r} is no path: {WHAT_TO_TYPE}")
    path = str(Path(text).expanduser())
    if Path(path).is_dir():
        images, left_out = _in_folder(path)
        if not images:
            raise UserError(
                f"{show_name(text)} has no image among {left_out:,} file{'s' if left_out != 1 else ''}: name a folder "
                "with files that end in .jpg, .png, or as other images do"
            )
        return images, left_out, False
    if _exists(path):
        return [path], 0, True
    if not glob.has_magic(path):
        raise UserError(f"{show_name(text)} does not exist: {WHAT_TO_TYPE}")
    images, left_out = [], 0
    for match in sorted(glob.glob(path, recursive=True)):  # noqa: PTH207  # which takes no absolute pattern
        inside, others = _in_folder(match) if Path(match).is_dir() else ([match], 0)
        images += inside
        left_out += others
    if not images:
        raise UserError(f"no image matches the pattern {show_name(text)}: correct it, and quote it against the shell")
    return images, left_out, False


def _exists(path: str) -> bool:
    """Whether there is a file. Raises UserError where something else is in its place, such as a device."""
    if not os.path.lexists(path):
        return False
    if not Path(path).is_file():
        raise UserError(f"{show_name(path)} is neither a file nor a folder: {WHAT_TO_TYPE}")
    return True


def _in_folder(path: str) -> tuple[list[str], int]:
    """The images below a folder, sorted, and how many other files are there. Raises UserError as `walk`."""
    from trainer.data.making.layout import hidden, is_image
    from trainer.data.making.layout.listing import walk

    names = sorted(name for name in walk(Path(path)) if not name.endswith("/"))
    images = [name for name in names if is_image(name) and not any(map(hidden, name.split("/")))]
    return [str(Path(path, name)) for name in images], len(names) - len(images)
