"""The names and sizes of all files below a folder: what a layout is made from."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from trainer.contract import UserError
from trainer.data.making.layout import NOWHERE, hidden


def walk(folder: Path) -> dict[str, int]:
    """Path below the folder: bytes. Links are followed, and one that leads nowhere has NOWHERE in place of its bytes.

    Folders without files end in "/", and so do folders of the system, into which nobody looks. Raises UserError for a
    folder that may not be read, and for one that holds itself by a link.
    """
    found: dict[str, int] = {}
    waiting: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]
    while waiting:
        prefix, above = waiting.pop()
        if prefix and hidden(prefix.rstrip("/").rpartition("/")[2]):
            found[prefix] = 0
            continue
        try:
            stat = (folder / prefix).stat()
            if (stat.st_dev, stat.st_ino) in above:
                raise UserError(f"{folder / prefix} is a link to a folder above it: remove the link")
            with os.scandir(folder / prefix) as entries:
                empty = True
                for entry in entries:
                    empty = False
                    if _is_loop(entry):
                        found[f"{prefix}{entry.name}"] = NOWHERE
                    elif entry.is_dir():
                        waiting.append((f"{prefix}{entry.name}/", (*above, (stat.st_dev, stat.st_ino))))
                    else:
                        found[f"{prefix}{entry.name}"] = entry.stat().st_size if entry.is_file() else NOWHERE
        except PermissionError as error:
            raise UserError(f"{folder / prefix} may not be read ({error.strerror}): allow it, or remove it") from error
        if empty and prefix:
            found[prefix] = 0
    return found


def _is_loop(entry: os.DirEntry[str]) -> bool:
    """Whether it is a link that leads to itself, by one link or by several."""
    try:
        entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return True
        raise
    return False
