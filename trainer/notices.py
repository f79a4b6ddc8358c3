"""Writes the notices of third parties: each package of this environment and of Debian, its licence, and the texts.

    python notices.py [FOLDER of Debian's documentation] > NOTICES.txt

The image is built with it. Standard library only, and nothing else of the trainer.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path

DEBIAN = Path("/usr/share/doc")
COMMON = Path("/usr/share/common-licenses")  # the texts that Debian's copyright files point to
PYTHON_LICENCE = Path(sys.base_prefix, "lib", f"python{sys.version_info.major}.{sys.version_info.minor}", "LICENSE.txt")
IS_LICENCE = re.compile(r"(licen[cs]e|copying|notice|eula)", re.IGNORECASE)
MOST_LETTERS_OF_A_LICENCE = 60
RULER = "=" * 100
NOTICES_HEAD = """Notices of third parties
The software of this image is that of its authors, under the licences below. For each package: its name, its version,
its licence as it names it, and the texts that come with it. The sources of Debian's packages: https://snapshot.debian.org
CUDA, cuDNN, NCCL and the other packages of NVIDIA are under NVIDIA's licence agreement. It binds who publishes this
image: https://docs.nvidia.com/cuda/eula
"""


@dataclass(frozen=True)
class Notice:
    name: str
    licence: str
    texts: tuple[str, ...]  # empty if the package brings none


def licence_of(package: Distribution) -> str:
    """The licence in words, as the package's metadata have it. Some have its whole text where its name belongs."""
    expressions, texts, classifiers = (
        package.metadata.get_all(field) or [] for field in ("License-Expression", "License", "Classifier")
    )
    names = [line.rpartition(" :: ")[2] for line in classifiers if line.startswith("License ::")]
    text = "".join(texts).strip()
    named = text if len(text) < MOST_LETTERS_OF_A_LICENCE and not text.startswith("Copyright") else ""
    return "".join(expressions) or named or ", ".join(names) or "not named"


def python_notices(packages: Iterable[Distribution]) -> Iterator[Notice]:
    """The installed packages, and Python where its own licence lies beside it."""
    if PYTHON_LICENCE.is_file():
        yield Notice(f"Python {sys.version.split()[0]}", "PSF-2.0", (read_text(PYTHON_LICENCE),))
    found = {f"{one.metadata['Name']} {one.version}": one for one in packages}
    for name, package in sorted(found.items(), key=lambda item: item[0].lower()):
        inside = [Path(str(package.locate_file(file))) for file in package.files or () if ".dist-info" in str(file)]
        texts = [read_text(path) for path in sorted(inside) if IS_LICENCE.search(path.name) and path.is_file()]
        yield Notice(name, licence_of(package), tuple(texts))


def debian_notices(folder: Path) -> Iterator[Notice]:
    """Debian's packages, by their copyright files, and the licences that those point to."""
    for path in sorted(folder.glob("*/copyright")):
        yield Notice(f"Debian: {path.parent.name}", "in its copyright file", (read_text(path),))
    for path in sorted(COMMON.glob("*")):
        if folder == DEBIAN and not path.is_symlink():
            yield Notice(f"Text of {path.name}", "named in the copyright files", (read_text(path),))


def read_text(path: Path) -> str:
    return path.read_text(errors="replace").strip()


def document(notices: Iterable[Notice]) -> Iterator[str]:
    """The document: a table of all packages, then their texts."""
    listed = [*notices]
    yield NOTICES_HEAD
    for one in listed:
        yield f"{one.name}: {one.licence}{'' if one.texts else ' (the package brings no text)'}"
    users: dict[str, list[str]] = {}
    for one in listed:
        for text in one.texts:
            users.setdefault(text, []).append(one.name)
    for text, names in users.items():
        yield f"\n{RULER}\n{', '.join(names)}\n{RULER}\n{text}"


def main() -> None:
    folder = Path(sys.argv[1]) if sys.argv[1:] else DEBIAN
    for part in document([*python_notices(distributions()), *debian_notices(folder)]):
        sys.stdout.write(f"{part}\n")


if __name__ == "__main__":
    main()
