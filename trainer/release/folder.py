"""A release folder appears whole or not at all, and nobody's files are overwritten."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trainer.contract import UserError
from trainer.model_card import CARD_FILE, ModelCard
from trainer.text import say

README_FILE, CONFIG_FILE = "README.md", "config.json"
FORM_FILES = {"torchvision": "model.safetensors", "program": "model.pt2", "onnx": "model.onnx"}
RELEASE_FILES = frozenset({README_FILE, CONFIG_FILE, CARD_FILE, *FORM_FILES.values()})


def read_released(folder: Path) -> ModelCard | None:
    """The card of a release that is there; None where nothing is.

    Raises UserError where something else is there, or a release with files that are not its own, or with links: what
    they name would be uploaded.
    """
    if not os.path.lexists(folder):
        return None
    nothing_of_ours = f"{str(folder)!r} is there, and is no release: name another folder with --to"
    try:
        kinds = {path.name: path.lstat().st_mode for path in sorted(folder.iterdir())}
        if CARD_FILE not in kinds:
            raise UserError(nothing_of_ours)
        odd = ["a link in its place"] if folder.is_symlink() else []
        odd += [name for name in kinds if name not in RELEASE_FILES]
        odd += [f"{name}, which is no plain file" for name, mode in kinds.items() if not stat.S_ISREG(mode)]
        card = None if odd else ModelCard.from_json((folder / CARD_FILE).read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(nothing_of_ours) from error
    if odd:
        raise UserError(
            f"{str(folder)!r} is a release, and has what no release has ({', '.join(odd[:3])}), so it is left as it "
            "is: name another folder with --to"
        )
    return card


@contextmanager
def appearing(folder: Path, *, replace: bool) -> Iterator[Path]:
    """A new folder to write into. It gets the name at the end, where all is well; else it is gone.

    With `replace` a release that is there makes place in the same moment. Raises UserError.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise UserError(f"{str(folder)!r} cannot be made ({error}): name another folder with --to") from error
    new, old = beside / "new", beside / "old"
    try:
        new.mkdir()
        yield new
        _give_name(new, folder, old, replace=replace)
    except OSError as error:
        raise UserError(f"{str(folder)!r} cannot be written ({error}): name another folder with --to") from error
    finally:
        if old.exists() and not new.exists():  # it was replaced
            _remove_release(old)
        shutil.rmtree(new, ignore_errors=True)
        if old.exists():
            say(f"note: what was at {folder} before is kept in {old}")
        with suppress(OSError):
            beside.rmdir()


def _give_name(new: Path, folder: Path, old: Path, *, replace: bool) -> None:
    """Rename `new`. A release that has the name becomes `old`, and gets the name back if that fails.

    What is there is looked at again: making the files has taken a while. Raises OSError, UserError.
    """
    try:
        if replace and read_released(folder) is not None:
            folder.rename(old)
        if os.path.lexists(folder):
            raise FileExistsError("it was made meanwhile")
        new.rename(folder)
    except BaseException:
        if old.exists() and not os.path.lexists(folder):
            old.rename(folder)
        raise


def _remove_release(folder: Path) -> None:
    """Only its own files: whatever else came into it in the last moment stays, with the folder."""
    with suppress(OSError):
        for name in RELEASE_FILES:
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()
