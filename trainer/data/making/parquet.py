"""Parquet files with the hub's ImageNet schema. Those of a dataset on the hub are downloaded by `hub`.

Listing and reading only: whether the labels make sense is decided in `sources`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from trainer.contract import UserError
from trainer.data.making.faults import naming_the_file
from trainer.data.making.row_groups import RowGroups
from trainer.data.making.source_formats import SPLITS, Example, Labels, Split


def parquet_files(folder: Path) -> dict[str, list[Path]]:
    """The files of each split, in order. A split's name is a word of the file's name or of its folder's."""
    files: dict[str, list[Path]] = {split: [] for split in SPLITS}
    # Two levels, as the hub has them; deeper would walk through a million images.
    for file in sorted([*folder.glob("*.parquet"), *folder.glob("*/*.parquet")]):
        for split, names in SPLITS.items():
            if re.search(rf"(^|[-_./])({'|'.join(names)})[-_./]", str(file.relative_to(folder))):
                files[split].append(file)
                break
    return files


class ParquetSplit:
    """Rows of parquet files. A row near the last one is cheap."""

    # Not through `load_dataset`, which would first write a second copy of everything: 150 GB for ImageNet.
    in_runs: ClassVar = True

    def __init__(self, split: str, files: Sequence[Path]) -> None:
        import pyarrow.parquet as pq

        self._split, self._images = split, RowGroups(files, "image")
        labels = []
        for path in files:
            with naming_the_file(path, "column label"), pq.ParquetFile(path) as file:
                labels.append(file.read(columns=["label"])["label"].fill_null(-1).to_numpy())  # -1: refused
        self.labels: Labels = np.concatenate(labels).astype(np.int64) if labels else np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> Example:
        image = self._images[i].as_py() or {}
        name = image.get("path") or f"{self._split}[{i}]"
        return Example(image.get("bytes") or b"", int(self.labels[i]), name)


def open_parquet(data: str, files: Mapping[str, Sequence[Path]]) -> tuple[tuple[str, ...], dict[str, Split]]:
    """Class names, from the ClassLabel of the hub's schema, or numbers without one; and the splits."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import ClassLabel, Features

    names: dict[str, tuple[str, ...]] = {}
    splits: dict[str, Split] = {}
    for split, paths in files.items():
        if not paths:
            raise UserError(
                f"DATA={data}: split {split} is missing: no parquet file has {' or '.join(SPLITS[split])} in its name"
            )
        for path in paths:
            try:
                schema = pq.read_schema(path)
            except (pa.ArrowInvalid, OSError) as error:
                raise UserError(
                    f"DATA={data}: {path.name} is not a readable parquet file ({error}): fetch it again"
                ) from error
            _check_schema(data, path, schema)
            feature = Features.from_arrow_schema(schema)["label"]
            names.setdefault(split, tuple(feature.names) if isinstance(feature, ClassLabel) else ())
        splits[split] = ParquetSplit(split, paths)
    if names["train"] != names["val"]:
        raise UserError(f"DATA={data}: the class names of train and val differ: both need the same ClassLabel")
    counted = tuple(str(i) for i in range(int(splits["train"].labels.max(initial=-1)) + 1))
    return names["train"] or counted, splits


def _check_schema(data: str, path: Path, schema: Any) -> None:
    import pyarrow as pa

    wanted = "the hub's ImageNet schema is image: struct<bytes: binary, path: string>, label: int64"
    for column in ("image", "label"):
        if column not in schema.names:
            raise UserError(f"DATA={data}: {path.name} has no column {column!r}, only {schema.names}: {wanted}")
    image, label = schema.field("image").type, schema.field("label").type
    if not (pa.types.is_struct(image) and image.get_field_index("bytes") >= 0) or not pa.types.is_integer(label):
        raise UserError(f"DATA={data}: {path.name} has image: {image}, label: {label}: {wanted}")
