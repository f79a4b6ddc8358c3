"""A release folder appears whole or not at all, and nobody's files are overwritten."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.contract import UserError
from trainer.model_card import CARD_FILE, ModelCard

README_FILE, CONFIG_FILE = "README.md", "config.json"
FORM_FILES = {"torchvision": "model.safetensors", "program": "model.pt2", "onnx": "model.onnx"}
RELEASE_FILES = frozenset({README_FILE, CONFIG_FILE, CARD_FILE, *FORM_FILES.values()})


def read_released(folder: Path) -> ModelCard | None:
    """The card of a release that is there; None where nothing is.

    Raises UserError where something else is there, or a release with files that are not its own.
    """
    if not folder.exists() and not folder.is_symlink():
        return None
    try:
        names = {path.name for path in folder.iterdir()}
        card = ModelCard.from_json((folder / CARD_FILE).read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{str(folder)!r} is there, and is no release: name another folder with --to") from error
    if others := sorted(names - RELEASE_FILES) or (["a link in its place"] if folder.is_symlink() else []):
        raise UserError(
            f"{str(folder)!r} is a release, and has what no release has ({', '.join(others[:3])}), so it is left as it "
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
    try:
        new, old = beside / "new", beside / "old"
        new.mkdir()
        yield new
        try:
            if replace and folder.exists():
                folder.rename(old)
            if folder.exists():
                raise FileExistsError("it was made meanwhile")
            new.rename(folder)
        except BaseException:
            if old.exists() and not folder.exists():
                old.rename(folder)
            raise
    except OSError as error:
        raise UserError(f"{str(folder)!r} cannot be written ({error}): name another folder with --to") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
