"""The scratch folder: local, fast, may be lost. What lies in it is believed, so only this user may write there."""

from __future__ import annotations

import os
import pwd
import stat
import tempfile
from pathlib import Path

from trainer.contract import UserError

ROOT_UID = 0  # may change everything anyway


def open_scratch(folder: str | Path) -> Path:
    """Make the folder for this user alone, or check the one that is there. Returns its absolute path.

    Raises UserError where it cannot be written, where another user owns it, and where another user may write to it:
    prepared data and compiled code in it would be that user's.
    """
    path = Path(folder).absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        owners = {path.lstat().st_uid, path.stat().st_uid}
        mode, group = path.stat().st_mode, path.stat().st_gid
        if others := owners - {os.geteuid(), ROOT_UID}:
            raise UserError(
                f"TRAINER_SCRATCH_DIR={str(folder)!r} belongs to another user ({', '.join(map(_user, others))}), who "
                f"could change data and code in it: name a folder of your own, for example {hint()}"
            )
        if mode & stat.S_IWOTH or (mode & stat.S_IWGRP and group != os.getegid()):
            raise UserError(
                f"others may write to TRAINER_SCRATCH_DIR={str(folder)!r} (mode {stat.S_IMODE(mode):o}), and could "
                f"change data and code in it: name a new folder, for example {hint()}; or, if you know who wrote what "
                "is in it, chmod go-w it"
            )
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise UserError(
            f"TRAINER_SCRATCH_DIR={str(folder)!r} cannot be written ({error}): name a local folder with room, for "
            f"example {hint()}"
        ) from error
    return path


def hint() -> str:
    """A folder that no other user can have made."""
    return f"SCRATCH={Path('~/.cache/resnet-spot').expanduser()}"


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
