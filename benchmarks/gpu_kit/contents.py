"""What a kit's folder holds, file by file, and its marker `kit.json`: a kit counts as whole once that says so."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu_kit.wheels import CARRIED
from trainer.contract import UserError

MARKER = "kit.json"
MOST_BYTES = 60_000_000
ROOT = Path(__file__).parents[2]
PLACES = ("run.py", "wheels", "data", "code")
CODE = ("trainer", "benchmarks")
LEFT_OUT = {"results", "gpu_kit", "__pycache__"}  # of the code
NOT_ON_A_BOX = {"boto3", "datasets", "pillow", "scikit-learn"}  # S3, sources of images, digits: prepared already
UNLISTED = {"pyarrow": "0"}  # comes with `datasets` elsewhere
OPTIONAL = {"matplotlib": "runs end without a report", "timm": "the row of timm is left out"}

Files = dict[str, str]  # path in the kit, SHA-256


def read_marker(folder: Path) -> dict[str, Any]:
    """What the marker says; nothing where there is no kit yet. UserError for a folder that is something else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return {}
    try:
        found = json.loads((folder / MARKER).read_text())
        if isinstance(found, dict) and isinstance(found["files"], dict):
            return found
    except (OSError, ValueError, KeyError):
        pass
    raise UserError(
        f"{folder} is there, and it is no kit ({MARKER} is missing or damaged), so nothing in it was changed: remove "
        "it, or name another folder with ARGS='--folder FOLDER'"
    )


def write_marker(folder: Path, marker: dict[str, Any]) -> None:
    """In one piece."""
    new = folder / f".{MARKER}"
    new.write_text(json.dumps(marker, indent=1) + "\n")
    new.replace(folder / MARKER)


def hashes(folder: Path, *places: str) -> Files:
    """Every file in these places of the kit; what running it may have left is no part of it."""
    paths = [path for place in places for path in (folder / place, *sorted((folder / place).rglob("*")))]
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
        if path.is_file() and "__pycache__" not in path.parts
    }


def code_files() -> Iterator[tuple[str, Path]]:
    """The place in the kit of every file of the code, and of the script that starts it."""
    yield "run.py", Path(__file__).with_name("run.py")
    for package in CODE:
        for path in sorted((ROOT / package).rglob("*")):
            if path.is_file() and not LEFT_OUT & {*path.relative_to(ROOT).parts}:
                yield f"code/{path.relative_to(ROOT).as_posix()}", path


def has_code(folder: Path) -> bool:
    """Whether the kit's code is that of this checkout, file by file."""
    wanted = {place: hashlib.sha256(path.read_bytes()).hexdigest() for place, path in code_files()}
    return hashes(folder, "run.py", "code") == wanted


def copy_code(folder: Path) -> None:
    """Bring the kit's code to the state of this checkout."""
    shutil.rmtree(folder / "code", ignore_errors=True)
    for place, path in code_files():
        target = folder / place
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def needs() -> dict[str, str]:
    """The packages that the box must have: name and least version, from pyproject.toml."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]["trainer"]
    found: dict[str, str] = dict(one.split(">=") for one in listed)
    left_out = NOT_ON_A_BOX | OPTIONAL.keys() | {name.lower() for name in CARRIED}
    return {name: least for name, least in found.items() if name.lower() not in left_out} | UNLISTED


def commit() -> str:
    """The commit of this checkout, and whether it was changed since."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    except OSError:
        return "unknown"


def marker_of(folder: Path, python: str, made_from: str) -> dict[str, Any]:
    """The marker of a whole kit. UserError if it has grown too large to be carried."""
    files = hashes(folder, *PLACES)
    size = sum((folder / place).stat().st_size for place in files)
    if size > MOST_BYTES:
        large = sorted(files, key=lambda place: -(folder / place).stat().st_size)[:3]
        raise UserError(
            f"the kit has {size / 1e6:.1f} MB, and {MOST_BYTES / 1e6:.0f} MB is the most; the largest files are "
            f"{', '.join(large)}: remove what you have added, or prepare fewer images"
        )
    return {
        "whole": True, "python": python, "commit": commit(), "bytes": size, "images": made_from,
        "needs": needs(), "optional": OPTIONAL, "files": files,
    }  # fmt: skip
