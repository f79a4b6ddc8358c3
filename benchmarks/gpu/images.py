"""Prepared data for the rows that read images: carried along, or made here once by the product's own preparation.

python -m benchmarks.gpu.images FOLDER [--only NAME]      makes both sets
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from trainer.data.format import INDEX, Copies
from trainer.recipes.named import RECIPES

DIGITS, PHOTOGRAPHS = "digits", "photographs"
TRAIN, VAL = 352, 32  # photographs
TINY_TRAIN, TINY_VAL = 16, 4


def prepared(folder: Path, name: str) -> Path:
    """The folder with the prepared images of `name`, "digits" or "photographs": below `folder`, and made if need be.

    Making them needs what `make prepare` needs, in a process of its own. Finding them needs nothing, so `folder` can
    be carried to another machine.
    """
    if (found := _find(folder, name)) is None:
        command = [sys.executable, "-m", "benchmarks.gpu.images", str(folder), "--only", name]
        subprocess.run(command, check=True)
        found = _find(folder, name)
    assert found is not None
    return found


def _find(folder: Path, name: str) -> Path | None:
    return next((index.parent for index in sorted(folder.glob(f"datasets/{name}/*/{INDEX}"))), None)


def make(folder: Path, name: str, *, tiny: bool = False) -> None:
    """Prepare one set below `folder`. The photographs are crops of the two that scikit-learn ships; few if `tiny`."""
    from benchmarks import photographs
    from trainer.data.making.prepare import prepare
    from trainer.store import open_store

    folder.mkdir(parents=True, exist_ok=True)
    if name == DIGITS:
        data = RECIPES["digits"]().data
        prepare("digits", open_store(str(folder)), Copies(data.train_sides, (data.val_side,), data.quality))
        return
    with tempfile.TemporaryDirectory() as scratch:
        train, val = (TINY_TRAIN, TINY_VAL) if tiny else (TRAIN, VAL)
        originals = photographs.make(Path(scratch) / PHOTOGRAPHS, train, val, packages=("sklearn",))
        prepare(str(originals), open_store(str(folder)), Copies())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=(DIGITS, PHOTOGRAPHS))
    options = parser.parse_args()
    for name in (DIGITS, PHOTOGRAPHS):
        if options.only in (None, name) and _find(options.folder, name) is None:
            make(options.folder, name)


if __name__ == "__main__":
    main()
