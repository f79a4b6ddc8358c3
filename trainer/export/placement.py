"""Puts finished files where the user wants them: all of them, or none, and nothing that is there is lost."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from trainer.contract import UserError

OLD = ".old"  # ends the second name of a file of before, while its successor arrives


def check_targets(targets: Iterable[Path], *, replace: bool) -> None:
    """Raises UserError where a file is there that may not be replaced, or something that is no file."""
    for target in targets:
        if os.path.lexists(target) and (target.is_symlink() or not target.is_file()):
            raise UserError(f"{target} is a folder, a link or a device, not a file: name another folder with --to")
        if not replace and target.exists():
            raise UserError(f"{target}: there already; name another folder with --to, or add --replace")


def place(files: Mapping[Path, Path], *, replace: bool) -> None:
    """Give each finished file (a value) the name of its target (the key), on the same file system.

    On an error or Ctrl-C, each target is as it was. Raises UserError, OSError.
    """
    check_targets(files, replace=replace)
    made = {target: unfinished.stat().st_ino for target, unfinished in files.items()}
    try:
        for target, unfinished in files.items():
            if replace and target.exists():
                os.link(target, _old(unfinished))
                unfinished.replace(target)
            else:
                os.link(unfinished, target)  # refuses a target that has appeared meanwhile
    except BaseException as error:
        for target, unfinished in files.items():
            if _old(unfinished).exists():
                _old(unfinished).replace(target)
            elif target.exists() and target.stat().st_ino == made[target]:
                target.unlink()
        if isinstance(error, FileExistsError):
            raise UserError(
                f"{error.filename2} appeared while it was made; nothing was written: run the command again"
            ) from error
        raise


def _old(unfinished: Path) -> Path:
    return unfinished.with_name(unfinished.name + OLD)
