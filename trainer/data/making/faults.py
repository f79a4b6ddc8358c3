"""What a library raises on a file of the user becomes one message, with the file and the fix."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator
from pathlib import Path

from trainer.contract import UserError
from trainer.text import show_name

FIXES = {
    errno.EMFILE: "raise the limit of open files, for example `ulimit -n 65536`",
    errno.ENFILE: "close other programs: the whole system has too many open files",
    errno.ENOENT: "put it back; it was there when it was listed",
    errno.EACCES: "make it readable for this user",
    errno.ENOMEM: "use a machine with more memory",
}
CHECK_DISK = "check the disk, or the server that it lies on; then run the same command again"


@contextlib.contextmanager
def naming_the_file(file: Path, part: str = "", fix: str = "fetch it again") -> Iterator[None]:
    """Raise UserError for whatever is raised within. `part` says where in the file, `fix` what mends damage.

    Only the call of a library belongs in here: a bug of ours must stay a crash.
    """
    name, inside = show_name(file), f" in {part}" if part else ""
    try:
        yield
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(
            f"{name} needs more memory{inside} than this machine has ({reason(error)}): {FIXES[errno.ENOMEM]}"
        ) from error
    except OSError as error:
        if not error.errno:  # not the system's: pyarrow says so that the bytes are wrong
            raise UserError(f"{name} is damaged{inside} ({reason(error)}): {fix}") from error
        raise UserError(
            f"{name} cannot be read{inside} ({error.strerror}): {FIXES.get(error.errno, CHECK_DISK)}"
        ) from error
    except NotImplementedError as error:  # it is whole, but the library cannot read such a file
        raise UserError(
            f"{name} cannot be read{inside} ({reason(error)}): "
            "write it again, with plain columns and smaller row groups"
        ) from error
    except Exception as error:
        raise UserError(f"{name} is damaged{inside} ({reason(error)}): {fix}") from error


def reason(error: BaseException) -> str:
    """The error's own words, without addresses of objects; its kind where they are none, or say little without it."""
    said, kind = show_name(re.sub(r" *<[^<>]* at 0x[0-9a-fA-F]+>", "", str(error))), type(error).__name__
    return f"{kind}: {said}" if said and isinstance(error, LookupError) else said or kind
