"""The scratch folder: local, fast, may be lost. What lies in it is believed, so only this user may write there."""

from __future__ import annotations

import os
import pwd
import stat
import tempfile
from pathlib import Path

from trainer.contract import UserError
from trainer.text import say

ROOT_UID = 0  # may change everything anyway


def open_scratch(folder: str | Path) -> Path:
    """Make the folder for this user alone, or check the one that is there. Returns its absolute path.

    This user's own folder loses the write permission of this user's group, which others may be in, and that is said.
    Raises UserError where the folder cannot be written, where another user owns it, and where another user may write to
    it: prepared data and compiled code in it would be that user's.
    """
    path = Path(folder).absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        owners = {path.lstat().st_uid, path.stat().st_uid}
        found = path.stat()
        mode, is_own = stat.S_IMODE(found.st_mode), found.st_uid == os.geteuid()
        if others := owners - {os.geteuid(), ROOT_UID}:
            raise UserError(
                f"TRAINER_SCRATCH_DIR={str(folder)!r} belongs to another user ({', '.join(map(_user, others))}), who "
                f"could change data and code in it: name a folder of your own, for example {hint()}"
            )
        if is_own and found.st_gid == os.getegid() and mode & 0o022 == stat.S_IWGRP:
            path.chmod(mode - stat.S_IWGRP)
            say(f"your group may no longer write to {path} (chmod g-w): the data and code in it are believed")
        elif mode & 0o022:
            is_shared = not is_own or mode & stat.S_ISVTX  # such as /tmp, which needs its mode
            mend = "" if is_shared else "; or, if you know who wrote what is in it, chmod go-w it"
            raise UserError(
                f"others may write to TRAINER_SCRATCH_DIR={str(folder)!r} (mode {mode:o}), and could change data and "
                f"code in it: name a new folder, for example {hint()}{mend}"
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
