"""Reads the files that say the classes of a validation whose images lie in no class folders, as ImageNet's does.

Where each comes from, and which of several is taken, is in `layout.truth`.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from trainer.contract import UserError
from trainer.data.making.layout import few, refused

GROUND_TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
_NUMBERED = re.compile(r"ILSVRC2012_val_(\d{8})")


def read_truth(
    data: str, files: Sequence[Path], images: Sequence[str], classes: Sequence[str]
) -> npt.NDArray[np.int64]:
    """The label of each image, (N,) int64, by its place in `classes`. Raises UserError if one has none, or two."""
    stems = [PurePosixPath(image).stem for image in images]
    try:
        if files[0].name.endswith(".tar.gz"):
            found = _by_number(stems, _devkit(_members(files[0])))
        elif files[0].name == GROUND_TRUTH:
            found = _by_number(stems, _devkit({file.name: file.read_bytes() for file in files}))
        else:
            lines = files[0].read_text().splitlines()
            alone = all(len(line.split()) <= 1 for line in lines) and not any("," in line for line in lines)
            found = _by_number(stems, lines) if alone else _by_name(set(stems), lines, set(classes))
    except (ValueError, KeyError, IndexError, TypeError, tarfile.TarError, EOFError, OSError) as error:
        if isinstance(error, UserError):
            raise
        raise refused(
            data, f"{files[0].name} does not say the classes of the validation ({error}): fetch it again"
        ) from error
    number = {name: i for i, name in enumerate(classes)}
    if odd := [image for image, stem in zip(images, stems, strict=True) if found.get(stem) not in number]:
        why = f"such as {found[PurePosixPath(odd[0]).stem]!r}" if PurePosixPath(odd[0]).stem in found else "or none"
        raise refused(
            data,
            f"{files[0].name} gives {len(odd):,} of {len(images):,} validation images no class of training, {why} "
            f"({few(odd)}): fetch the file that belongs to these images",
        )
    return np.array([number[found[stem]] for stem in stems], np.int64)


def _by_name(stems: set[str], lines: Sequence[str], classes: set[str]) -> dict[str, str]:
    """Lines that name an image and its class, as a table or as `mv IMAGE CLASS/`."""
    found: dict[str, str] = {}
    for line in lines:
        words = [word for word in re.split(r"[\s,;/]+", line) if word]
        stem = next((stem for word in words if (stem := PurePosixPath(word).stem) in stems), "")
        name = next((word for word in words if word in classes), "")
        if stem and name and found.setdefault(stem, name) != name:
            raise ValueError(f"{stem} is {found[stem]!r} and {name!r}")
    return found


def _by_number(stems: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Lines in the order of the numbers of ImageNet's validation images, from 1."""
    found = {}
    for stem in stems:
        numbered = _NUMBERED.fullmatch(stem)
        if not numbered or not 1 <= int(numbered[1]) <= len(names):
            raise ValueError(f"{stem} is not ILSVRC2012_val_00000001 to {len(names):08d}")
        found[stem] = names[int(numbered[1]) - 1].strip()
    return found


def _members(devkit: Path) -> dict[str, bytes]:
    found = {}
    with tarfile.open(devkit) as archive:
        for member in archive:
            name = PurePosixPath(member.name).name
            if name in (GROUND_TRUTH, META) and (content := archive.extractfile(member)):
                found[name] = content.read()
    return found


def _devkit(files: Mapping[str, bytes]) -> list[str]:
    """The synset of each validation image: the ground truth has ImageNet's own numbers, and meta.mat their synsets."""
    from scipy.io import loadmat  # scikit-learn brings it

    synsets = loadmat(io.BytesIO(files[META]), squeeze_me=True)["synsets"]
    by_id = {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in synsets}
    return [by_id[int(line)] for line in files[GROUND_TRUTH].decode("ascii").split()]
