"""What a library raises on a file of the user becomes one message, with the file and the fix."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator
from pathlib import Path

from trainer.contract import UserError
from trainer.text import show_name

MORE_MEMORY = "use a machine with more memory, or fewer threads (--workers)"
FIXES = {
    errno.EMFILE: "raise the limit of open files, for example `ulimit -n 65536`",
    errno.ENFILE: "close other programs: the whole system has too many open files",
    errno.ENOENT: "put it back; it was there when it was listed",
    errno.EACCES: "make it readable for this user",
    errno.ENOMEM: MORE_MEMORY,
}
CHECK_DISK = "check the disk, or the server that it lies on; then run the same command again"


@contextlib.contextmanager
def naming_the_file(file: Path, part: str = "") -> Iterator[None]:
    """Raise UserError for whatever is raised within. `part` says where in the file.

    Only the call of a library belongs in here: a bug of ours must stay a crash.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise as_user_error(error, show_name(file), part) from error


def as_user_error(error: Exception, name: str, part: str = "") -> UserError:
    """One message for what a library raised on what is called `name`: a file, or an image in one."""
    inside = f" in {part}" if part else ""
    if isinstance(error, MemoryError):
        return UserError(f"{name} needs more memory{inside} than this machine has ({reason(error)}): {MORE_MEMORY}")
    if isinstance(error, OSError) and error.errno:  # else it is not the system's: pyarrow calls wrong bytes so
        fix = FIXES.get(error.errno, CHECK_DISK)
        return UserError(f"{name} cannot be read{inside} ({error.strerror or reason(error)}): {fix}")
    if isinstance(error, NotImplementedError):  # the file is whole, but the library cannot read such a one
        fix = "write it again, with plain columns and smaller row groups"
        return UserError(f"{name} cannot be read{inside} ({reason(error)}): {fix}")
    return UserError(f"{name} is damaged{inside} ({reason(error)}): fetch it again")


def reason(error: BaseException) -> str:
    """The error's own words, without addresses of objects; its kind where they are none, or say little without it."""
    said, kind = show_name(re.sub(r" *<[^<>]* at 0x[0-9a-fA-F]+>", "", str(error))), type(error).__name__
    return f"{kind}: {said}" if said and isinstance(error, LookupError) else said or kind
