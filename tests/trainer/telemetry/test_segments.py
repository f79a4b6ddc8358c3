"""A segment of metrics is read as a whole where each line is one plain object, and line by line elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.contract import metrics_key
from trainer.store import open_store
from trainer.telemetry.metrics import read_segment


def test_lines_that_only_look_like_rows_are_told_apart_one_by_one(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store = open_store(str(tmp_path))
    honest = b'{"step": 1, "time": 5, "gpu/utilization": 0.5}'
    for number, (body, count) in enumerate((
        (honest + b"\n" + honest, 2), (honest + b"\n" + honest[:20], 1), (honest + b",7\n" + honest, 1),
        (b'{"step":\n{"step": 1}}, 7', 0), (b'{"step": 1, "time": 5, "a": {}}\n7', 1), (b"", 0),
        (honest + b'\n{"step": -1}\n' + honest, 2), (b'{"step": 1, "text": "{"}', 1), (b'{"step": 1,\n"time": 5}', 0),
    )):  # fmt: skip
        key = metrics_key("lines", number, "0.jsonl")
        store.put(key, body)
        (info,) = store.list(key)
        assert len(read_segment(store, info)) == count, body
    assert capfd.readouterr().err.count("are no metrics") == 6
