"""What members answered, kept on disk: memory stays the same for 500 images and for 50,000.

A file has float32 log-probabilities, a row for each image in the order of the split. Processes write their own rows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

LogRows = npt.NDArray[np.float32]  # (N, classes) log-probabilities
Truth = npt.NDArray[np.int64]  # (N,) the label of each image, or LEFT_OUT
LEFT_OUT = -1  # of an image that no score counts
MOST_BYTES_READ = 4 << 20  # that are in memory at a time


@dataclass(frozen=True)
class Predictions:
    """Of one member for all images of a split: (images, classes) float32."""

    path: Path
    images: int
    classes: int

    def write(self, indices: npt.NDArray[np.int64], rows: LogRows) -> None:
        """Rows of these images. Raises OSError where the disk is full."""
        assert rows.shape == (len(indices), self.classes), f"{rows.shape} rows of {self.classes} classes"
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            breaks = np.flatnonzero(np.diff(indices) != 1) + 1
            for numbers, part in zip(np.split(indices, breaks), np.split(rows, breaks), strict=True):
                at = int(numbers[0]) * self.row_bytes
                body = memoryview(part.astype(np.float32).tobytes())
                while body:
                    written = os.pwrite(file, body, at)
                    body, at = body[written:], at + written
        finally:
            os.close(file)

    def chunks(self) -> Iterator[tuple[int, LogRows]]:
        """All rows in order: the number of the first image of a chunk, and its rows, which the caller may change."""
        count = max(1, MOST_BYTES_READ // self.row_bytes)
        with self.path.open("rb") as file:
            for first in range(0, self.images, count):
                rows = min(count, self.images - first)
                body = file.read(rows * self.row_bytes)
                if len(body) != rows * self.row_bytes:
                    raise RuntimeError(f"{self.path} ends before image {self.images}: not every image was scored")
                yield first, np.frombuffer(body, np.float32).reshape(rows, self.classes).copy()

    @property
    def row_bytes(self) -> int:
        return 4 * self.classes
