"""Reads the files that say the classes of a validation whose images lie in no class folders, as ImageNet's does.

Where each comes from, and which of several is taken, is in `layout.truth`.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from trainer.data.making.faults import reason
from trainer.data.making.layout import few, how_to_choose, is_image, refused
from trainer.text import say

GROUND_TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
_NUMBERED = re.compile(r"ILSVRC2012_val_\d{8}")


@dataclass(frozen=True)
class Said:
    """What a file says: the class of each validation image by its stem, and how many training images a class has."""

    classes: Mapping[str, str]
    of_train: Mapping[str, int] = field(default_factory=dict)


def read_truth(
    data: str,
    files: Sequence[Path],
    images: Sequence[str],
    classes: Sequence[str],
    of_train: Sequence[int],
    accept_incomplete: bool,
) -> npt.NDArray[np.int64]:
    """The label of each validation image, (N,) int64, by its place in `classes`.

    Raises UserError if one has none, or two; and if images are missing that the file knows, unless that is accepted,
    which is said. `of_train` is how many training images each class has.
    """
    stems = [PurePosixPath(image).stem for image in images]
    said = _read_all(data, files, stems, classes)
    number = {name: i for i, name in enumerate(classes)}
    if odd := [i for i, stem in enumerate(stems) if said.classes.get(stem) not in number]:
        unsaid = [i for i in odd if stems[i] not in said.classes]
        what = f"{files[0].name} gives {len(unsaid or odd):,} of {len(images):,} validation images no class of training"
        shown = few([images[i] for i in unsaid or odd])
        if unsaid:
            raise refused(data, f"{what}, or none ({shown}): fetch the file that belongs to these images")
        other = sorted({said.classes[stems[i]] for i in odd})
        raise refused(
            data,
            f"{what}, such as {other[0]!r} ({shown}). Training has no folder for {len(other):,} classes that the file "
            "names: unpack the rest of training; or, if it is whole, fetch the file that belongs to these images",
        )
    missing = [
        f"{len(absent):,} validation images ({few(absent)})"
        for absent in [sorted(stem for stem in said.classes.keys() - set(stems) if said.classes[stem] in number)]
        if absent
    ]
    missing += [
        f"{wanted - found:,} training images of class {name}"
        for name, found in zip(classes, of_train, strict=True)
        if (wanted := said.of_train.get(name, found)) > found
    ]
    if missing:
        what = f"{files[0].name} knows more images than are here; missing are {few(missing)}"
        if not accept_incomplete:
            raise refused(data, f"{what}: fetch them, or go on without them, {how_to_choose('accept_incomplete', '')}")
        say(f"{what}; that is accepted")
    return np.array([number[said.classes[stem]] for stem in stems], np.int64)


def _read_all(data: str, files: Sequence[Path], stems: Sequence[str], classes: Sequence[str]) -> Said:
    """What the first file says. Raises UserError if another one says other classes of these images."""
    meta, found = [file for file in files if file.name == META], list[tuple[Path, Said]]()
    for file in files:
        if file.name == META:
            continue
        try:
            found.append((file, _read([file, *meta], set(classes))))
        except Exception as error:  # SciPy raises all kinds
            raise refused(
                data, f"{file.name} does not say the classes of the validation ({reason(error)}): fetch it again"
            ) from error
    (first, said), *others = found
    for other, also in others:
        if odd := [stem for stem in stems if also.classes.get(stem) != said.classes.get(stem)]:
            answers = [repr(one.classes[odd[0]]) if odd[0] in one.classes else "none" for one in (said, also)]
            raise refused(
                data,
                f"{first.name} and {other.name} say different classes of {len(odd):,} validation images (such as "
                f"{odd[0]}: {' and '.join(answers)}): remove the wrong one",
            )
    return said


def _read(files: Sequence[Path], classes: set[str]) -> Said:
    if files[0].name.endswith(".tar.gz"):
        return _devkit(_members(files[0]))
    if files[0].name == GROUND_TRUTH:
        return _devkit({file.name: file.read_bytes() for file in files})
    lines = files[0].read_text("utf-8-sig").splitlines()  # Windows writes a mark first
    if any(len(line.split()) > 1 or "," in line for line in lines):
        return Said(_by_name(lines, classes))
    return Said(_numbered([line.strip() for line in lines]))


def _by_name(lines: Sequence[str], classes: set[str]) -> dict[str, str]:
    """Lines that name an image and its class, as a table or as `mv IMAGE CLASS/`."""
    found: dict[str, str] = {}
    unknown: dict[str, str] = {}  # to training: its folder may not be unpacked
    for line in lines:
        words = [word for word in re.split(r"[\s,;/]+", line) if word]
        stem = next((PurePosixPath(word).stem for word in words if is_image(word) or _NUMBERED.fullmatch(word)), "")
        name = next((word for word in words if word in classes), "")
        if stem and not name:
            after = next(i for i, word in enumerate(words) if PurePosixPath(word).stem == stem) + 1
            unknown.update((stem, word) for word in words[after : after + 1])
        if stem and name and found.setdefault(stem, name) != name:
            raise ValueError(f"{stem} is {found[stem]!r} and {name!r}")
    return unknown | found


def _numbered(names: Sequence[str]) -> dict[str, str]:
    """Lines in the order of the numbers of ImageNet's validation images, from 1."""
    return {f"ILSVRC2012_val_{i:08d}": name for i, name in enumerate(names, start=1)}


def _members(devkit: Path) -> dict[str, bytes]:
    found = {}
    with tarfile.open(devkit) as archive:
        for member in archive:
            name = PurePosixPath(member.name).name
            if name in (GROUND_TRUTH, META) and (content := archive.extractfile(member)):
                found[name] = content.read()
    return found


def _devkit(files: Mapping[str, bytes]) -> Said:
    """The ground truth has ImageNet's own numbers of classes. meta.mat has their names, and counts training images."""
    from scipy.io import loadmat  # scikit-learn brings it

    synsets = loadmat(io.BytesIO(files[META]), squeeze_me=True)["synsets"]
    by_id = {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in synsets}
    of_train = {str(synset["WNID"]): int(synset["num_train_images"]) for synset in synsets}
    return Said(_numbered([by_id[int(line)] for line in files[GROUND_TRUTH].decode("utf-8-sig").split()]), of_train)
