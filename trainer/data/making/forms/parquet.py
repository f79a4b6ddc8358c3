"""Parquet files with the hub's ImageNet schema, or with other names of its two columns.

Labels mean one thing in all files: class names and their order are compared, and mapped by name where that is sure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from trainer.data.making.faults import naming_the_file
from trainer.data.making.forms.row_groups import RowGroups
from trainer.data.making.forms.source_formats import Example, Labels, Split
from trainer.data.making.layout import Choices, SourceLayout, few, how_to_choose, refused

NO_LABEL = -1  # of a row without one: refused later, with the row's number


class ParquetSplit:
    """Rows of parquet files. A row near the last one is cheap."""

    # Not through `load_dataset`, which would first write a second copy of everything: 150 GB for ImageNet.
    in_runs: ClassVar = True

    def __init__(self, split: str, files: Sequence[Path], column: str, labels: Labels) -> None:
        self._split, self._images, self.labels = split, RowGroups(files, column), labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> Example:
        row = self._images[i]
        image, path = _image_and_path(row) if row.is_valid else (b"", b"")
        name = path.decode("utf-8", "surrogateescape") or f"{self._split}[{i}]"
        return Example(image, int(self.labels[i]), name)


def _image_and_path(row: Any) -> tuple[bytes, bytes]:
    """The bytes of an image and of its path, each empty where the row has none. Nothing says that a path is UTF-8."""
    import pyarrow as pa

    if not isinstance(row, pa.StructScalar):
        return row.as_py(), b""
    path = row["path"].cast(pa.binary()).as_py() if "path" in row else b""
    return row["bytes"].as_py() or b"", path or b""


@dataclass(frozen=True)
class Columns:
    """A file as its schema describes it."""

    path: Path
    image: str
    label: str
    classes: tuple[str, ...]  # names of the labels, or none
    text: bool  # labels are names themselves


def open_parquet(
    data: str, folder: Path, layout: SourceLayout, choices: Choices
) -> tuple[tuple[str, ...], dict[str, Split], tuple[str, ...]]:
    """Class names, the splits, and what was done to labels that should be said.

    The names come from the ClassLabel of the files or of README.md, or from labels that are text; else they are
    numbers.
    Raises UserError if the labels may mean different things in different files.
    """
    files = {role: [_columns(data, folder / path, choices) for path in paths] for role, paths in layout.splits.items()}
    every = [columns for of_role in files.values() for columns in of_role]
    text = {columns.text for columns in every}
    if len(text) > 1:
        odd = next(columns for columns in every if columns.text != every[0].text)
        raise refused(data, f"the labels of {every[0].path.name} are {_kind(every[0])}, those of {odd.path.name} are "
                            f"{_kind(odd)}: all files need the same")  # fmt: skip
    declared = layout.declared.classes.get(every[0].label, ())
    classes = _text_classes(data, files, declared) if text == {True} else _common_classes(data, every, declared)
    splits: dict[str, Split] = {
        role: ParquetSplit(
            role,
            [columns.path for columns in found],
            every[0].image,
            np.concatenate([_labels(data, columns, classes) for columns in found]),
        )
        for role, found in files.items()
    }
    mapped = [columns.path.name for columns in every if columns.classes and columns.classes != classes]
    said = (f"class names in another order, mapped by name: {few(mapped)}",) if mapped else ()
    return classes or _classes_of_numbers(data, splits["train"].labels), splits, said


def _classes_of_numbers(data: str, labels: Labels) -> tuple[str, ...]:
    """The classes of plain numbers: 0 to the highest of training. A wrong one may be as high as 2**63."""
    highest = int(labels.max(initial=-1))
    if highest >= len(labels):
        raise refused(
            data,
            f"label {highest} of image {labels.argmax()} in split train is out of range: it means {highest + 1:,} "
            f"classes, and there are only {len(labels):,} images; correct or remove those rows",
        )
    return tuple(str(i) for i in range(highest + 1))


def _kind(columns: Columns) -> str:
    return "text" if columns.text else "numbers"


def _columns(data: str, path: Path, choices: Choices) -> Columns:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import ClassLabel, Features

    with naming_the_file(path, "its schema"):
        try:
            schema = pq.read_schema(path)
        except pa.ArrowInvalid as error:
            raise refused(data, f"{path.name} is not a readable parquet file ({error}): fetch it again") from error
    image, label = choices.image, choices.label
    _check_schema(data, path, schema, image, label)
    kind = schema.field(label).type
    with naming_the_file(path, "its ClassLabel"):
        written = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        # Not Features.from_arrow_schema: it forgets the names of a ClassLabel whose integers are not int64.
        named = {name: kind for name, kind in written.get("info", {}).get("features", {}).items() if name == label}
        feature = Features.from_dict(named).get(label)
    classes = tuple(feature.names) if isinstance(feature, ClassLabel) else ()
    return Columns(path, image, label, classes, _is_text(kind.value_type if pa.types.is_dictionary(kind) else kind))


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _check_schema(data: str, path: Path, schema: Any, image: str, label: str) -> None:
    import pyarrow as pa

    wanted = "the hub's ImageNet schema is image: struct<bytes: binary, path: string>, label: int64"
    for column, choice in ((image, "image_column"), (label, "label_column")):
        if column not in schema.names:
            other = next((name for name in schema.names if name not in (image, label)), "…")
            raise refused(
                data,
                f"{path.name} has no column {column!r}, only {schema.names}: {wanted}; name another column by "
                f"{how_to_choose(choice, other)}",
            )
    pixels, kind = schema.field(image).type, schema.field(label).type
    encoded = pa.types.is_struct(pixels) and pixels.get_field_index("bytes") >= 0
    encoded = encoded or pa.types.is_binary(pixels) or pa.types.is_large_binary(pixels)
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not encoded or not (pa.types.is_integer(kind) or _is_text(value)):
        raise refused(data, f"{path.name} has {image}: {pixels}, {label}: {kind}: {wanted}, or text as the label")


def _common_classes(data: str, files: Sequence[Columns], declared: tuple[str, ...]) -> tuple[str, ...]:
    """The names that the first file has, or README.md. The other files may have another order."""
    first = next((columns for columns in files if columns.classes), None)
    if first is None:
        return declared
    if declared and declared != first.classes:
        raise refused(
            data,
            f"README.md declares other class names than {first.path.name} has, or in another order "
            f"({_difference(declared, first.classes)}): correct README.md, or remove its dataset_info",
        )
    for columns in files:
        if not columns.classes and not declared:
            raise refused(
                data,
                f"{columns.path.name} has no class names, and {first.path.name} has them: nothing says what its "
                "labels mean; write it with the same ClassLabel, or declare that in README.md",
            )
        if columns.classes and sorted(columns.classes) != sorted(first.classes):
            raise refused(
                data,
                f"the class names of train and val differ, or those of two files: {columns.path.name} and "
                f"{first.path.name} ({_difference(columns.classes, first.classes)}): all need the same ClassLabel",
            )
    return first.classes


def _difference(first: Sequence[str], second: Sequence[str]) -> str:
    if odd := sorted(set(first) ^ set(second)):
        return f"for example {odd[0]!r}; {len(first):,} and {len(second):,} names"
    i = next((i for i, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]), 0)
    return f"number {i} is {first[i]!r} and {second[i]!r}"


def _text_classes(data: str, files: Mapping[str, Sequence[Columns]], declared: tuple[str, ...]) -> tuple[str, ...]:
    """The texts that are the labels of training, sorted. Validation may have no other."""
    seen = {role: {name for columns in found for name in _texts(columns)} for role, found in files.items()}
    classes = declared or tuple(sorted(seen["train"]))
    for role, names in seen.items():
        if odd := sorted(names - set(classes)):
            raise refused(
                data,
                f"label {odd[0]!r} of split {role} is no class of training, of which there are {len(classes):,} "
                f"({few(classes)}): correct or remove those rows",
            )
    return classes


def _texts(columns: Columns) -> set[str]:
    import pyarrow.compute as pc

    found = pc.unique(_read_labels(columns))
    with naming_the_file(columns.path, f"column {columns.label}"):
        return set(found.to_pylist()) - {None}


def _read_labels(columns: Columns) -> Any:
    """The label column as a pyarrow.ChunkedArray, numbers or text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with naming_the_file(columns.path, f"column {columns.label}"), pq.ParquetFile(columns.path) as file:
        found = file.read(columns=[columns.label])[columns.label]
        return found.cast(found.type.value_type) if pa.types.is_dictionary(found.type) else found


def _labels(data: str, columns: Columns, classes: tuple[str, ...]) -> Labels:
    """The labels of a file as places in `classes`, (N,) int64; NO_LABEL for a row without one."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found = _read_labels(columns)
    if columns.text:
        found = pc.index_in(found, value_set=pa.array(classes, found.type))
    try:
        labels: Labels = found.cast(pa.int64()).fill_null(NO_LABEL).to_numpy().astype(np.int64)
    except pa.ArrowInvalid as error:
        raise refused(data, f"the labels of {columns.path.name} are no classes ({error}): correct them") from error
    if columns.classes and columns.classes != classes:
        to = np.array([classes.index(name) for name in columns.classes])
        known = (labels >= 0) & (labels < len(to))
        labels = np.where(known, to[np.clip(labels, 0, len(to) - 1)], labels)
    return labels
