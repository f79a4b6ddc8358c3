"""Make the kit, or bring one up to date. What is right already stays as it is.

make gpu-kit     ARGS="--python 3.13" for a box with another Python; the page is docs/gpu-box.md
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu import images
from benchmarks.gpu_kit import contents, wheels
from benchmarks.gpu_kit.contents import MOST_BYTES, ROOT, hashes
from trainer.contract import Exit, UserError
from trainer.text import say, tell

MAKERS = (  # of the prepared images
    "benchmarks/gpu/images.py", "benchmarks/photographs.py", "trainer/data/format.py", "trainer/data/making/convert.py",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Wanted:
    folder: Path
    python: str = "3.12"  # of the box
    wheels: Path | None = None  # a folder that has them; None: the package registry
    lock: Path = ROOT / "requirements/trainer.txt"
    tiny: bool = False  # a few images, for a trial


def image_version(tiny: bool) -> str:
    """Changes with the files that say what is prepared and how."""
    texts = [(ROOT / maker).read_text() for maker in MAKERS]
    return hashlib.sha256(json.dumps([tiny, *texts]).encode()).hexdigest()


def make_images(folder: Path, tiny: bool) -> None:
    """Prepare the digits and the photographs into the folder, in the place of what is there."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in (images.DIGITS, images.PHOTOGRAPHS):
        images.make(folder, name, tiny=tiny)


def build(wanted: Wanted) -> tuple[dict[str, Any], list[str]]:
    """The marker of the whole kit, and the parts that had to be made. Raises UserError.

    Until the last of them is there the marker says that the kit is not whole.
    """
    folder, version, pins = wanted.folder, image_version(wanted.tiny), wheels.pins(wanted.lock)
    before = contents.read_marker(folder)
    stored = {place: digest for place, digest in before.get("files", {}).items() if place.startswith("data/")}
    has_images = bool(stored) and before["images"] == version and stored.items() <= hashes(folder, "data").items()
    lacking = wheels.lacking(folder / "wheels", pins, wanted.python)
    steps: dict[str, Callable[[], object]] = {}
    with tempfile.TemporaryDirectory(prefix="gpu-kit-") as scratch:
        if lacking:
            wheels.download(Path(scratch), lacking, wanted.python, wanted.wheels)
            steps["wheels"] = lambda: wheels.place(Path(scratch), folder / "wheels")
        if not has_images:
            steps["images"] = lambda: make_images(folder / "data", wanted.tiny)
        if not contents.has_code(folder):
            steps["code"] = lambda: contents.copy_code(folder)
        if steps:
            folder.mkdir(parents=True, exist_ok=True)
            contents.write_marker(folder, {"files": {}, "images": ""} | before | {"whole": False})
        for make in steps.values():
            make()
    marker = contents.marker_of(folder, wanted.python, version)
    if marker != before:
        contents.write_marker(folder, marker)
    return marker, list(steps)


def parse(words: list[str]) -> Wanted:
    parser = argparse.ArgumentParser("make gpu-kit", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("gpu-kit"), help="the kit (gpu-kit)")
    parser.add_argument("--python", default="3.12", help="Python of the box (3.12)")
    parser.add_argument("--wheels", type=Path, help="a folder that has the wheels, where there is no package registry")
    parser.add_argument("--tiny", action="store_true", help="prepare a few images only, for a trial")
    given = parser.parse_args(words)
    if not re.fullmatch(r"3\.(1[1-9]|[2-9]\d)", given.python):
        raise UserError(f"--python {given.python}: give the version on the box as 3.12; 3.11 is the oldest")
    if given.wheels and not given.wheels.is_dir():
        raise UserError(f"--wheels {given.wheels} is no folder: name the one that has the wheels")
    return Wanted(folder=given.folder, python=given.python, wheels=given.wheels, tiny=given.tiny)


def main() -> int:
    try:
        wanted = parse(sys.argv[1:])
        marker, made = build(wanted)
    except UserError as error:
        say(f"error: {error}")
        return Exit.USER
    size = f"{marker['bytes'] / 1e6:.1f} MB of at most {MOST_BYTES / 1e6:.0f}"
    done = f"made {', '.join(made)}" if made else "all was right"
    tell(f"{wanted.folder}: {done}; {size}, for Python {wanted.python}")
    tell(f"copy it to the GPU box and run there: python3 {wanted.folder.name}/run.py RESULTS   (docs/gpu-box.md)")
    return Exit.FINISHED


if __name__ == "__main__":
    raise SystemExit(main())
