"""Reads one column of parquet files by row number, in pieces. No row group is ever in memory as a whole.

Some writers, pandas for one, make a single row group of gigabytes. Arrow cannot read that at once, since an array of
structs holds no more than 2 GB.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.contract import UserError
from trainer.data.making.faults import naming_the_file

PIECE_ROWS = 32  # rows that are read at a time: 3.5 MB of ImageNet
KEPT_ROWS = 512  # rows in memory: 128 threads, each four images ahead, find theirs there
BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of a row group."""

    group: int
    first: int  # of its rows, counted in the group
    rows: Any  # a pyarrow.Array

    def holds(self, group: int, row: int) -> bool:
        return self.group == group and self.first <= row < self.first + len(self.rows)


class RowGroups:
    """A column of parquet files, counted through. Rows after the last one are cheap, earlier ones are read again."""

    def __init__(self, files: Sequence[Path], column: str) -> None:
        import pyarrow.parquet as pq

        self._column = column
        self._groups: list[tuple[Path, int]] = []
        firsts = [0]
        for path in files:
            with naming_the_file(path), pq.ParquetFile(path) as file:
                for number in range(file.metadata.num_row_groups):
                    self._groups.append((path, number))
                    firsts.append(firsts[-1] + file.metadata.row_group(number).num_rows)
        self._firsts = np.array(firsts)
        self._kept = deque[Piece]()
        self._ahead: Iterator[Piece] = iter(())  # the pieces that follow the newest one in its row group
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def __getitem__(self, i: int) -> Any:
        """The value of row i: a pyarrow.Scalar. Any thread may ask. UserError if the file cannot be read."""
        group = int(np.searchsorted(self._firsts, i, side="right")) - 1
        row = i - int(self._firsts[group])
        with self._lock:
            piece = next((piece for piece in self._kept if piece.holds(group, row)), None) or self._read(group, row)
        return piece.rows[row - piece.first]

    def _read(self, group: int, row: int) -> Piece:
        newest = self._kept[-1] if self._kept else None
        if newest is None or newest.group != group or row < newest.first:
            self._ahead = self._pieces(group)
        try:
            while True:
                piece = next(self._ahead)
                self._kept.append(piece)
                while len(self._kept) > 1 and sum(len(kept.rows) for kept in self._kept) > KEPT_ROWS:
                    self._kept.popleft()
                if piece.holds(group, row):
                    return piece
        except UserError:
            self._kept.clear()  # whoever asks next begins again, and is told the same
            raise

    def _pieces(self, group: int) -> Iterator[Piece]:
        """The row group from its beginning."""
        import pyarrow.parquet as pq

        path, number = self._groups[group]
        first = 0
        with naming_the_file(path, f"row group {number}"):
            # By default the whole row group would be fetched before the first row.
            with pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER_BYTES) as file:
                for batch in file.iter_batches(PIECE_ROWS, row_groups=[number], columns=[self._column]):
                    yield Piece(group, first, batch.column(0))
                    first += batch.num_rows
            raise EOFError(f"it ends after {first} rows, its header promises more")
