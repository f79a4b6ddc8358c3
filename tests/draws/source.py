"""A source of images as a person may have it, with the truth about it: which image has which class, in which split.

Forms make one, damages and changes alter it, and `write` puts it into a folder. The truth alters with it.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.data.making.layout import Choices


@dataclass(frozen=True)
class Entry:
    """One image. Entries of no split are there, but nobody should read them."""

    data: bytes
    label: str  # the name of its class
    split: str  # train, val, or "" for neither
    place: str  # the path of its file; within a table or an archive, its name


@dataclass
class Table:
    """A parquet file."""

    rows: list[Entry]
    names: tuple[str, ...] | None  # of the ClassLabel; None: plain numbers, or text
    kind: str = "int64"  # of the labels: an integer type of Arrow, "string" or "dictionary"
    image: str = "struct"  # of the images: struct, binary or large_binary
    columns: tuple[str, str] = ("image", "label")
    raw: dict[int, Any] = field(default_factory=dict)  # row: a label in place of its own

    def body(self, numbers: Sequence[str]) -> bytes:
        """`numbers` are the classes in the order of plain labels."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        order = {name: i for i, name in enumerate(self.names or numbers)}
        as_text = self.kind in ("string", "dictionary")
        labels = [row.label if as_text else order[row.label] for row in self.rows]
        labels = [self.raw.get(i, label) for i, label in enumerate(labels)]
        if self.kind == "dictionary":
            found = pa.array(labels, pa.string()).dictionary_encode()
        else:
            found = pa.array(labels, getattr(pa, self.kind)())
        if self.image == "struct":
            kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
            images = pa.array([{"bytes": row.data, "path": row.place} for row in self.rows], kind)
        else:
            images = pa.array([row.data for row in self.rows], getattr(pa, self.image)())
        table = pa.table({self.columns[0]: images, self.columns[1]: found})
        if self.names is not None:
            features = {self.columns[0]: {"_type": "Image"},
                        self.columns[1]: {"names": list(self.names), "_type": "ClassLabel"}}  # fmt: skip
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        out = io.BytesIO()
        pq.write_table(table, out, row_group_size=5)
        return out.getvalue()


@dataclass
class Archive:
    """A tar file: of images, or of an archive for each class."""

    members: list[Entry]
    by_class: bool
    format: int = tarfile.GNU_FORMAT
    extras: dict[str, bytes] = field(default_factory=dict)  # members that are no images

    def body(self) -> bytes:
        if not self.by_class:
            return packed(
                [*((member.place, member.data) for member in self.members), *self.extras.items()], self.format
            )
        classes = dict.fromkeys(member.label for member in self.members)
        inner = [
            (f"{name}.tar", packed([(m.place, m.data) for m in self.members if m.label == name], self.format))
            for name in classes
        ]
        return packed([*inner, *self.extras.items()], self.format)


def packed(content: Sequence[tuple[str, bytes]], format: int = tarfile.GNU_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for name, body in content:
            member = tarfile.TarInfo(name)
            member.size = len(body)
            archive.addfile(member, io.BytesIO(body))
    return out.getvalue()


@dataclass
class Source:
    """What `DATA=` is to be."""

    form: str
    classes: tuple[str, ...]  # in the order of plain numbers
    choices: Choices = field(default_factory=Choices)
    images: list[Entry] = field(default_factory=list)  # in files of their own
    tables: dict[str, Table] = field(default_factory=dict)
    archives: dict[str, Archive] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)  # of other kinds
    folders: set[str] = field(default_factory=set)  # without files
    links: dict[str, str] = field(default_factory=dict)
    made: list[Callable[[Source], dict[str, bytes]]] = field(default_factory=list)  # files that follow from the rest
    harmed: dict[str, Callable[[bytes], bytes]] = field(default_factory=dict)  # path: what happens to its bytes
    refusal: list[str] = field(default_factory=list)  # if it must be refused: the message has one of these
    doubtful: list[str] = field(default_factory=list)  # if it may be refused, too: the message has one of these
    told: list[str] = field(default_factory=list)  # the output has each of these, if it is prepared
    notes: list[str] = field(default_factory=list)  # what was done to it, for people

    def every(self) -> Iterator[tuple[list[Entry], int]]:
        """Each entry as a list and the place in it, so that it can be replaced."""
        lists = [self.images, *(t.rows for t in self.tables.values()), *(a.members for a in self.archives.values())]
        return ((found, i) for found in lists for i in range(len(found)) if found[i].split)

    def harm(self, path: str, how: Callable[[bytes], bytes]) -> None:
        before = self.harmed.get(path, bytes)
        self.harmed[path] = lambda body: how(before(body))

    @property
    def truth(self) -> list[Entry]:
        return [found[i] for found, i in self.every()]

    @property
    def is_whole(self) -> bool:
        """Whether there are images of both splits."""
        return {entry.split for entry in self.truth} == {"train", "val"}

    def content(self) -> dict[str, bytes]:
        """Path: bytes, of every file."""
        found = {entry.place: entry.data for entry in self.images} | self.files
        for make in self.made:
            found |= make(self)
        found |= {path: table.body(self.classes) for path, table in self.tables.items()}
        found |= {path: archive.body() for path, archive in self.archives.items()}
        for path, harm in self.harmed.items():
            if path in found:
                found[path] = harm(found[path])
        return found

    def write(self, folder: Path) -> None:
        """Make the folder so. Files that are so already are not touched."""
        wanted = {path: body for path, body in self.content().items() if path not in self.links}
        there = {
            os.fsdecode(path.relative_to(folder))
            for path in folder.rglob("*")
            if not path.is_dir() or path.is_symlink()
        }
        for gone in there - wanted.keys() - self.links.keys():
            (folder / gone).unlink()
            if not any((folder / gone).parent.iterdir()):
                (folder / gone).parent.rmdir()
        for path, body in wanted.items():
            file = folder / path
            if not file.is_file() or file.read_bytes() != body:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(body)
        for path in self.folders:
            (folder / path).mkdir(parents=True, exist_ok=True)
        for path, target in self.links.items():
            if path not in there:
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).symlink_to(target)


def shown(label: str) -> str:
    """A class as prepared data names it: bytes that are no UTF-8 are escaped, accents composed."""
    return unicodedata.normalize("NFC", os.fsencode(label).decode(errors="backslashreplace"))
