"""Reads images out of ImageNet's tar archives where they lie: one pass over the headers, and nothing is unpacked."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, ClassVar

import numpy as np

from trainer.contract import UserError
from trainer.data.making.forms.ground_truth import read_truth
from trainer.data.making.forms.source_formats import Example, Labels, Split
from trainer.data.making.layout import SourceLayout, hidden, is_image, refused
from trainer.text import say

END_MARK = 1024  # zeros
PIECE = 1 << 20


class ArchiveSplit:
    """Images at their places within an archive."""

    in_runs: ClassVar = False

    def __init__(self, archive: Path, images: Sequence[tuple[str, int, int]], labels: Labels) -> None:
        """`images` has the name, the first byte and the size of each."""
        self._archive, self.labels = archive, labels
        self._names = [name for name, _, _ in images]
        self._places = np.array([place for _, *place in images], np.int64).reshape(-1, 2)  # (N, 2)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, i: int) -> Example:
        first, size = (int(number) for number in self._places[i])
        with self._archive.open("rb", buffering=0) as file:
            image = os.pread(file.fileno(), size, first)
        if len(image) < size:
            raise UserError(f"{self._archive} is shorter than it was ({self._names[i]} is cut): fetch it again")
        return Example(image, int(self.labels[i]), self._names[i])


def _images(data: str, archive: Path, file: IO[bytes], start: int) -> Iterator[tuple[str, int, int]]:
    """Name, first byte and size of each image of an archive that begins at `start` of its file."""
    end = archive.stat().st_size
    with tarfile.open(fileobj=file, mode="r:") as members:
        for member in members:
            if not member.isfile() or not is_image(member.name) or hidden(PurePosixPath(member.name).name):
                continue
            if start + member.offset_data + member.size > end:
                raise refused(data, f"{archive.name} is cut within {member.name}: fetch it again")
            yield member.name, start + member.offset_data, member.size
        _check_end(data, archive, file, members.offset, start)


def _check_end(data: str, archive: Path, file: IO[bytes], end: int, start: int = 0) -> None:
    """Only the zeros that end an archive may follow its last member: at a damaged header, `tarfile` ends in silence."""
    file.seek(end)
    piece = file.read(END_MARK)
    if len(piece) < END_MARK:
        raise refused(data, f"{archive.name} is cut at byte {start + end:,}: fetch it again")
    while piece:
        if piece.strip(b"\0"):
            raise refused(data, f"{archive.name} is damaged at byte {start + end:,}: fetch it again")
        piece = file.read(PIECE)


def open_archives(data: str, folder: Path, layout: SourceLayout) -> tuple[tuple[str, ...], dict[str, Split]]:
    """Classes and splits of both archives. The one of training holds an archive for each class."""
    train, val = (folder / layout.splits[role][0] for role in ("train", "val"))
    say(f"reading the headers of {train.name} and {val.name}")
    by_class: dict[str, list[tuple[str, int, int]]] = {}
    try:
        with train.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as members:
            for member in members:
                name = PurePosixPath(member.name).name
                inner = members.extractfile(member)
                if name.endswith(".tar") and not hidden(name) and inner:
                    by_class[name.removesuffix(".tar")] = list(_images(data, train, inner, member.offset_data))
            _check_end(data, train, file, members.offset)
        with val.open("rb") as file:
            of_val = sorted(_images(data, val, file, 0))
    except tarfile.TarError as error:
        raise refused(data, f"{train.name} or {val.name} is damaged ({error}): fetch it again") from error
    classes = tuple(sorted(by_class))
    of_train = [image for name in classes for image in sorted(by_class[name])]
    counts = [len(by_class[name]) for name in classes]
    labels = np.repeat(np.arange(len(classes)), counts)
    truth, names = [folder / path for path in layout.truth["val"]], [name for name, _, _ in of_val]
    of_truth = read_truth(data, truth, names, classes, counts, layout.choices.accept_incomplete)
    return classes, {
        "train": ArchiveSplit(train, of_train, labels),
        "val": ArchiveSplit(val, of_val, of_truth),
    }
