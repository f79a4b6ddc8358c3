"""Reading parquet files by row, however large their row groups are."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.contract import UserError
from trainer.data.making.forms.row_groups import KEPT_ROWS, PIECE_ROWS, RowGroups


def write(path: Path, values: list[bytes], rows_per_group: int) -> Path:
    pq.write_table(pa.table({"image": pa.array([{"bytes": value} for value in values])}), path, rows_per_group)
    return path


def numbered(count: int, first: int = 0) -> list[bytes]:
    return [b"%d" % i for i in range(first, first + count)]


def test_rows_are_counted_through_groups_and_files_and_come_in_any_order_to_any_thread(tmp_path: Path) -> None:
    files = [write(tmp_path / "a", numbered(700), 250), write(tmp_path / "b", numbered(400, first=700), 1)]
    rows = RowGroups(files, "image")
    assert len(rows) == 1100
    order = np.random.default_rng(0).permutation(1100)
    near = np.clip(np.arange(1100) + np.random.default_rng(1).integers(-KEPT_ROWS // 4, KEPT_ROWS // 4, 1100), 0, 1099)
    with ThreadPoolExecutor(8) as pool:
        for asked in (near, order[:100]):
            found = list(pool.map(rows.__getitem__, asked.tolist()))
            assert [row.as_py()["bytes"] for row in found] == [b"%d" % i for i in asked]


def test_a_row_group_larger_than_an_array_of_structs_can_be_is_read(tmp_path: Path) -> None:
    """Pandas makes one row group of a file. Arrow reads 2 GB of images and no more at once."""
    count = 2500
    numbers = pa.array([1] + [0] * (count - 1), pa.int32())  # 2.3 GB, and 1 MB in the file
    images = pa.StructArray.from_arrays([pa.DictionaryArray.from_arrays(numbers, [bytes(900_000), b"one"])], ["bytes"])
    pq.write_table(pa.table({"image": images}), tmp_path / "a", row_group_size=count, store_schema=False)
    with pq.ParquetFile(tmp_path / "a") as file:
        assert file.num_row_groups == 1
    rows = RowGroups([tmp_path / "a"], "image")
    assert [len(rows[i].as_py()["bytes"]) for i in (0, 1, PIECE_ROWS, 3)] == [3, 900_000, 900_000, 900_000]


def test_a_damaged_row_group_is_told_to_each_thread_that_asks_for_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a", numbered(100), 100)
    body = bytearray(path.read_bytes())
    body[4:40] = bytes(36)
    path.write_bytes(body)
    rows = RowGroups([path], "image")
    for i in (40, 3, 99):
        with pytest.raises(UserError, match=r"(?s)a is damaged in row group 0 .*fetch it again"):
            rows[i]
