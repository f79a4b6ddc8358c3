"""The images of a prepared split by number: any thread reads any image straight from the mapped Arrow files."""

from __future__ import annotations

import contextlib
import mmap
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from trainer.contract import UserError
from trainer.data.format import AGAIN, INDEX, Index, Shard, schema
from trainer.data.reading.mapping import advise, map_file
from trainer.store import naming_the_fix


class EncodedImages(Protocol):
    """What networks are scored on: images by number, nearly all of them JPEGs, and their labels."""

    split: str  # for messages
    labels: npt.NDArray[np.int64]  # (N,)

    def __len__(self) -> int: ...

    def jpeg(self, i: int) -> npt.NDArray[np.uint8]: ...

    def pixels(self, i: int, error: ValueError) -> npt.NDArray[np.uint8]:
        """Those of an image whose `jpeg` was none, which `error` says: (H, W, 3) uint8. May raise it."""
        ...

    def prefetch(self, indices: npt.NDArray[np.int64]) -> None: ...

    def name(self, i: int) -> str: ...


class PreparedSplit:
    """One split at one stored size, mapped into memory. Any thread may read it. Only a decoder copies bytes."""

    labels: npt.NDArray[np.int64]  # (N,)

    def __init__(self, directory: Path, index: Index, split: str, short_side: int) -> None:
        sizes = {size.short_side: size for size in index.splits[split].sizes}
        if short_side not in sizes:
            raise UserError(
                f"{directory} has no {short_side}-px images of {split}, only {sorted(sizes)}: prepare that size"
            )
        self.classes, self.split, self.short_side = index.classes, split, short_side
        self._bytes: list[npt.NDArray[np.uint8]] = []  # for each record batch: all its JPEGs, end to end
        self._paths: list[tuple[int, Any]] = []  # for each record batch: its first image, and all names
        self._addresses: list[int] = []  # for each record batch: where its JPEGs begin in memory
        _raise_file_limit()
        images_before, batch_of, starts, stops, labels = 0, [], [], [], []
        for shard in sizes[short_side].shards:
            rows = 0
            for batch in _open_shard(directory, shard, index.classes):
                images = batch.column("image").field("bytes")
                _, offsets, values = images.buffers()
                ends = np.frombuffer(offsets, np.int32)[images.offset : images.offset + len(images) + 1]
                starts.append(ends[:-1].astype(np.int64))
                stops.append(ends[1:].astype(np.int64))
                batch_of.append(np.full(batch.num_rows, len(self._bytes), np.int32))
                labels.append(batch.column("label").to_numpy())
                self._bytes.append(np.frombuffer(values, np.uint8))
                self._addresses.append(values.address)
                self._paths.append((images_before + rows, batch.column("image").field("path")))
                rows += batch.num_rows
            images_before += rows
            if rows != shard.images:
                raise UserError(f"{directory / shard.file} has {rows} images, {INDEX} says {shard.images}: {AGAIN}")
        self.labels = np.concatenate([np.empty(0, np.int64), *labels])
        self._batch_of = np.concatenate([np.empty(0, np.int32), *batch_of])
        self._starts = np.concatenate([np.empty(0, np.int64), *starts])
        self._stops = np.concatenate([np.empty(0, np.int64), *stops])

    def __len__(self) -> int:
        return len(self.labels)

    def jpeg(self, i: int) -> npt.NDArray[np.uint8]:
        """The encoded image: (bytes,) uint8, read-only, not copied."""
        jpeg: npt.NDArray[np.uint8] = self._bytes[self._batch_of[i]][self._starts[i] : self._stops[i]]
        return jpeg

    def pixels(self, i: int, error: ValueError) -> npt.NDArray[np.uint8]:
        """Raises the error: prepared images are JPEGs."""
        raise error

    def prefetch(self, indices: npt.NDArray[np.int64]) -> None:
        """Ask the system to read these images from the disk. Does not wait for it."""
        batches, starts, stops = self._batch_of[indices], self._starts[indices], self._stops[indices]
        for batch, start, stop in zip(batches.tolist(), starts.tolist(), stops.tolist(), strict=True):
            advise(self._addresses[batch] + start, stop - start, mmap.MADV_WILLNEED)

    def name(self, i: int) -> str:
        """The name that the image had in its source, for messages."""
        first, paths = self._paths[self._batch_of[i]]
        return str(paths[i - first].as_py())


def _open_shard(directory: Path, shard: Shard, classes: tuple[str, ...]) -> Iterator[Any]:
    """The record batches of a shard that are not empty. The file is mapped, and closed again.

    Arrow believes what a file says of its own lengths. So they are compared with the file before anything is read.
    """
    path = directory / shard.file
    if not path.is_file():
        raise UserError(f"{path} is missing, {INDEX} names it: {AGAIN}")
    if (found := path.stat().st_size) != shard.bytes:
        raise UserError(f"{path} has {found} bytes, {INDEX} says {shard.bytes}: {AGAIN}")
    try:
        with naming_the_fix(f"the shard {path}"):
            mapped = map_file(path)
        advise(mapped.address, mapped.size, mmap.MADV_RANDOM)  # else the system would read ahead, ten times too much
        reader = pa.ipc.open_file(mapped)
        if not reader.schema.equals(schema(classes)):
            raise ValueError(f"its columns are {', '.join(map(str, reader.schema))}")
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        for batch in batches:
            _check_rows(batch, len(classes))
    except UserError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path} is not a whole shard ({error}): {AGAIN}") from error
    for batch in batches:
        if batch.num_rows:
            yield batch


def _check_rows(batch: Any, classes: int) -> None:
    """Raises pa.ArrowInvalid or ValueError where lengths reach beyond the file, something is missing, or a label is."""
    batch.validate(full=True)
    images, labels = batch.column("image"), batch.column("label")
    if any(column.null_count for column in (images, *images.flatten(), labels)):
        raise ValueError("an image, a name or a label is missing")
    numbers = labels.to_numpy()
    if len(numbers) and not 0 <= numbers.min() <= numbers.max() < classes:
        raise ValueError(f"labels from {numbers.min()} to {numbers.max()} of {classes} classes")


def _raise_file_limit() -> None:
    """Let this process open as many files as the system allows: what else runs here opens some, too."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # some systems name a limit that they do not give
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
