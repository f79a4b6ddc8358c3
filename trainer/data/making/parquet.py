"""Parquet files with the hub's ImageNet schema: on this machine, or downloaded from the hub.

Listing and reading only: whether the labels make sense is decided in `sources`.
"""

from __future__ import annotations

import re
import sys
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from trainer.contract import UserError
from trainer.data.making.source_formats import SPLITS, Example, Labels, Split
from trainer.data.progress import ProgressListener


class UnreachableError(UserError):
    """The hub does not answer or is too busy. This may be over in a minute, though nobody does anything."""


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
    """Rows of parquet files. Whole row groups are read and the last few kept, so a row near the last one is cheap."""

    # Not through `load_dataset`, which would first write a second copy of everything: 150 GB for ImageNet.
    KEPT_ROW_GROUPS = 3
    in_runs: ClassVar = True

    def __init__(self, split: str, files: Sequence[Path]) -> None:
        import pyarrow.parquet as pq

        self._split = split
        self._groups: list[tuple[Path, int]] = []
        firsts, labels = [0], []
        for path in files:
            with pq.ParquetFile(path) as file:
                for group in range(file.metadata.num_row_groups):
                    self._groups.append((path, group))
                    firsts.append(firsts[-1] + file.metadata.row_group(group).num_rows)
                labels.append(file.read(columns=["label"])["label"].fill_null(-1).to_numpy())  # -1: refused
        self._firsts = np.array(firsts)
        self.labels: Labels = np.concatenate(labels).astype(np.int64) if labels else np.empty(0, np.int64)
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> Example:
        group = int(np.searchsorted(self._firsts, i, side="right")) - 1
        image = self._images(group)[i - int(self._firsts[group])].as_py() or {}
        name = image.get("path") or f"{self._split}[{i}]"
        return Example(image.get("bytes") or b"", int(self.labels[i]), name)

    def _images(self, group: int) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        with self._lock:
            if group in self._kept:
                self._kept.move_to_end(group)
            else:
                path, number = self._groups[group]
                try:
                    with pq.ParquetFile(path) as file:
                        self._kept[group] = file.read_row_group(number, columns=["image"])["image"]
                except (OSError, pa.ArrowInvalid) as error:
                    raise UserError(f"{path} is damaged in row group {number} ({error}): fetch it again") from error
                if len(self._kept) > self.KEPT_ROW_GROUPS:
                    self._kept.popitem(last=False)
            return self._kept[group]


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


def download_parquet(data: str, secrets_dir: str, progress: ProgressListener | None = None) -> Path:
    """Download the parquet files of a hub dataset into the hub's own cache. An interrupted download continues.

    `progress` is told of bytes when they arrive and when they are written.
    """
    from huggingface_hub import constants, get_token, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
    from huggingface_hub.utils.tqdm import disable_progress_bars, tqdm

    secret = Path(secrets_dir) / "hf_token" if secrets_dir else None
    token = (secret.read_text().strip() if secret and secret.is_file() else "") or get_token()
    page = f"{constants.ENDPOINT}/datasets/{data}"
    give = f"make a read token at {constants.ENDPOINT}/settings/tokens and give it as HF_TOKEN=… or by `hf auth login`"
    if not sys.stderr.isatty():
        disable_progress_bars()
    patterns = [f"*{name}*.parquet" for names in SPLITS.values() for name in names]

    class Bar(tqdm):  # the hub's client reports progress in no other way
        def update(self, count: float | None = 1) -> bool | None:
            if progress is not None and count:
                progress(int(count))
            shown: bool | None = super().update(count)
            return shown

    try:
        return Path(
            snapshot_download(
                data, repo_type="dataset", allow_patterns=patterns, token=token or False, tqdm_class=Bar
            )
        )  # fmt: skip
    except GatedRepoError as error:
        if not token:
            raise UserError(
                f"DATA={data} is gated and no token was found: accept the terms on {page}, then {give}"
            ) from error
        raise UserError(
            f"DATA={data} is gated and the hub refused this token: accept the terms on {page} with the account that "
            f"the token belongs to, or {give}"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"DATA={data}: no folder of that name here, and no such dataset at {page} (or it is private): check the "
            f"spelling; for a private dataset {give}"
        ) from error
    except LocalEntryNotFoundError as error:  # the client has tried for half a minute
        raise UnreachableError(
            f"DATA={data}: no folder of that name here, and the hub at {constants.ENDPOINT} cannot be reached: check "
            "the network, or give DATA= a folder of its parquet files"
        ) from error
    except HfHubHTTPError as error:
        raise UserError(
            f"DATA={data}: the hub at {constants.ENDPOINT} answered {error.response.status_code}: if it is 401 or 403, "
            f"{give}; else try again later"
        ) from error
