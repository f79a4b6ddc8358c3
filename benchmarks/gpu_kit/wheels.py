"""The wheels that a kit carries: what a GPU box with torch usually lacks, as the lock pins it, for the box's Python."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from trainer.contract import UserError

CARRIED = ("awscrt", "docstring-parser", "nvidia-ml-py", "psutil", "simplejpeg", "typeguard", "tyro")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


@dataclass(frozen=True)
class Pin:
    """One package of the lock."""

    name: str
    text: str  # its lines of the lock: name==version and the hashes
    hashes: frozenset[str]  # SHA-256 of every file of that version


def pins(lock: Path, names: tuple[str, ...] = CARRIED) -> list[Pin]:
    """What the lock says of the packages. UserError if it does not know one."""
    found = {}
    for text in re.split(r"\n(?=\S)", lock.read_text().strip()):
        name = text.partition("==")[0]
        found[name] = Pin(name, text, frozenset(re.findall(r"--hash=sha256:([0-9a-f]{64})", text)))
    if unknown := sorted(set(names) - found.keys()):
        raise UserError(f"{lock} does not pin {', '.join(unknown)}: run `make lock`")
    return [found[name] for name in names]


def usable_tags(python: str) -> frozenset[Tag]:
    """The tags of all wheels that Python `python` ("3.12") can use on a Linux box."""
    version = tuple(map(int, python.split(".")))
    return frozenset([*cpython_tags(version, platforms=PLATFORMS), *compatible_tags(version, platforms=PLATFORMS)])


def package_of(wheel: Path) -> str:
    """The package that a wheel belongs to, as the lock spells it; "" where the file's name is no wheel's."""
    try:
        return parse_wheel_filename(wheel.name)[0]
    except InvalidWheelFilename:
        return ""


def is_right(wheel: Path, pin: Pin, python: str) -> bool:
    """Whether the file is a wheel of the pin that Python `python` can use."""
    return (
        not parse_wheel_filename(wheel.name)[3].isdisjoint(usable_tags(python))
        and hashlib.sha256(wheel.read_bytes()).hexdigest() in pin.hashes
    )


def lacking(folder: Path, wanted: list[Pin], python: str) -> list[Pin]:
    """The pins of which the folder has not one right wheel and no other of the same package."""
    there = sorted(folder.glob("*.whl"))
    found = {pin: [wheel for wheel in there if package_of(wheel) == pin.name] for pin in wanted}
    return [pin for pin, own in found.items() if len(own) != 1 or not is_right(own[0], pin, python)]


def download(folder: Path, wanted: list[Pin], python: str, source: Path | None) -> None:
    """Put the wheels of the pins into the folder, which is empty. pip compares their hashes. Raises UserError.

    They come from the package registry that pip knows, or from the folder `source` alone.
    """
    (listed := folder / "requirements.txt").write_text("\n".join(pin.text for pin in wanted) + "\n")
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
        "--only-binary=:all:", "--implementation", "cp", "--python-version", python,
        *(word for platform in PLATFORMS for word in ("--platform", platform)),
        *(["--no-index", "--find-links", str(source.absolute())] if source else []),
        "--require-hashes", "--requirement", str(listed), "--dest", str(folder),
    ]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise UserError(_why(ended.stderr, wanted, python, source))
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            if any(".data/" in name for name in archive.namelist()):  # the box unpacks wheels, without pip
                raise UserError(f"{wheel.name} needs an installer (it has a .data folder): pin another version")


def place(downloaded: Path, folder: Path) -> None:
    """Move the wheels into the folder, in the place of others of the same packages."""
    folder.mkdir(exist_ok=True)
    new = sorted(downloaded.glob("*.whl"))
    for old in folder.glob("*.whl"):
        if package_of(old) in map(package_of, new):
            old.unlink()
    for wheel in new:
        shutil.move(wheel, folder / wheel.name)


def _why(said: str, wanted: list[Pin], python: str, source: Path | None) -> str:
    errors = [line.removeprefix("ERROR: ").strip() for line in said.splitlines() if line.startswith("ERROR: ")]
    names = ", ".join(pin.name for pin in wanted)
    fix = (
        f"put the versions of requirements/trainer.txt for Python {python} into {source}"
        if source
        else "connect this machine to its package registry, or name a folder that has them: ARGS='--wheels FOLDER'"
    )
    return f"the wheels of {names} for Python {python} are not to be had ({(errors or ['pip said nothing'])[0]}): {fix}"
