"""Reads images out of ImageNet's tar archives where they lie: one pass over the headers, and nothing is unpacked."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, ClassVar

import numpy as np

from trainer.contract import UserError
from trainer.data.making.faults import naming_the_file
from trainer.data.making.forms.ground_truth import read_truth
from trainer.data.making.forms.source_formats import Example, Labels, Split
from trainer.data.making.layout import SourceLayout, hidden, how_to_choose, is_image, refused
from trainer.text import say

Placed = tuple[str, int, int]  # an image of an archive: its name, its first byte, its size
END_MARK = 1024  # zeros
PIECE = 1 << 20


class ArchiveSplit:
    """Images at their places within an archive."""

    in_runs: ClassVar = False

    def __init__(self, archive: Path, images: Sequence[Placed], labels: Labels) -> None:
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


@dataclass(frozen=True)
class Headers:
    """Reads the headers of one archive, and of those within it."""

    data: str  # for messages
    archive: Path
    accept_incomplete: bool

    def images(self, file: IO[bytes], start: int, size: int) -> list[Placed]:
        """The images of an archive of so many bytes that begins at `start` of its file, by name. Raises UserError."""
        found = dict[str, Placed]()
        with tarfile.open(fileobj=file, mode="r:") as members:
            for member in members:
                if not member.isfile() or not is_image(member.name) or hidden(PurePosixPath(member.name).name):
                    continue
                if member.offset_data + member.size > size:
                    raise refused(self.data, f"{self.archive.name} is cut within {member.name}: fetch it again")
                self._check_new(member.name, found)
                found[member.name] = (member.name, start + member.offset_data, member.size)
            self._check_end(file, members.offset, size, start)
        return sorted(found.values())

    def by_class(self, file: IO[bytes]) -> dict[str, list[Placed]]:
        """The images of each archive within one. Raises UserError."""
        found = dict[str, list[Placed]]()
        with tarfile.open(fileobj=file, mode="r:") as members:
            for member in members:
                name = PurePosixPath(member.name).name
                inner = members.extractfile(member)
                if name.endswith(".tar") and not hidden(name) and inner:
                    self._check_new(name, [f"{one}.tar" for one in found])
                    found[name.removesuffix(".tar")] = self.images(inner, member.offset_data, member.size)
            self._check_end(file, members.offset, self.archive.stat().st_size)
        return found

    def _check_new(self, name: str, found: Container[str]) -> None:
        if name in found:
            what = f"{self.archive.name} has {name} twice, and either may be meant"
            raise refused(self.data, f"{what}: fetch or pack it again")

    def _check_end(self, file: IO[bytes], end: int, size: int, start: int = 0) -> None:
        """Only the zeros that end an archive may follow its last member, and no more than fill a record.

        At a damaged header, at a hole that a download has left, and between two members, `tarfile` ends in silence.
        """
        name, left = self.archive.name, size - end
        file.seek(end)
        piece = file.read(END_MARK)
        if len(piece) < END_MARK:
            raise refused(self.data, f"{name} is cut at byte {start + end:,}: fetch it again")
        while piece:
            if piece.strip(b"\0"):
                raise refused(self.data, f"{name} is damaged at byte {start + end:,}: fetch it again")
            piece = file.read(PIECE)
        if left <= tarfile.RECORDSIZE + tarfile.BLOCKSIZE:
            return
        what = f"{name} has {left:,} zeros from byte {start + end:,} on, which may be a hole in it"
        if not self.accept_incomplete:
            how = how_to_choose("accept_incomplete", "")
            raise refused(self.data, f"{what}: fetch it again, or go on without what is missing, {how}")
        say(f"{what}; that is accepted")


def open_archives(data: str, folder: Path, layout: SourceLayout) -> tuple[tuple[str, ...], dict[str, Split]]:
    """Classes and splits of both archives. The one of training holds an archive for each class."""
    train, val = (folder / layout.splits[role][0] for role in ("train", "val"))
    say(f"reading the headers of {train.name} and {val.name}")
    accepted = layout.choices.accept_incomplete
    with naming_the_file(train), train.open("rb") as file:
        by_class = Headers(data, train, accepted).by_class(file)
    with naming_the_file(val), val.open("rb") as file:
        of_val = Headers(data, val, accepted).images(file, 0, val.stat().st_size)
    classes = tuple(sorted(by_class))
    of_train = [image for name in classes for image in by_class[name]]
    counts = [len(by_class[name]) for name in classes]
    labels = np.repeat(np.arange(len(classes)), counts)
    truth, names = [folder / path for path in layout.truth["val"]], [name for name, _, _ in of_val]
    of_truth = read_truth(data, truth, names, classes, counts, accepted)
    return classes, {
        "train": ArchiveSplit(train, of_train, labels),
        "val": ArchiveSplit(val, of_val, of_truth),
    }
