"""A segment is read as a whole where each line is one plain object, and line by line elsewhere. One is kept."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from trainer.contract import metrics_key
from trainer.report import Report, Summary
from trainer.report.__main__ import main
from trainer.store import ObjectStore, open_store
from trainer.telemetry.metrics import Row, read_metrics, read_segment, start_row
from trainer.telemetry.samples import read_samples, samples_key


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


class Reads:
    """Counts what is read from a store, and can make two readers wait for each other."""

    def __init__(self, store: ObjectStore, monkeypatch: pytest.MonkeyPatch):
        self.keys: list[str] = []
        self.pair: threading.Barrier | None = None
        get = type(store).get

        def counted(store: ObjectStore, key: str) -> bytes:
            if self.pair is not None:
                self.pair.wait(timeout=5)
            self.keys.append(key)
            return get(store, key)

        monkeypatch.setattr(type(store), "get", counted)

    def names(self) -> list[str]:
        found, self.keys = sorted(key.split("/", 2)[2] for key in self.keys), []
        return found


def put_rows(store: ObjectStore, *first_steps: int) -> None:
    """A segment of two rows from each step on, and one of samples."""
    for first in first_steps:
        rows = [{"step": first + n, "time": 5.0 + first, "train/loss": 1.0} for n in range(2)]
        rows = [start_row(1, 0, 0) | {"time": 0.0}, *rows] if first == 0 else rows
        body = "".join(json.dumps(row) + "\n" for row in rows).encode()
        store.put(metrics_key("kept", 1, f"{first:08d}-{first + 1:08d}.jsonl"), body)
        store.put(samples_key("kept", 1, first), body.splitlines()[-1])


def test_what_was_read_and_kept_is_not_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "store").mkdir()
    store, kept = open_store(str(tmp_path / "store")), tmp_path / "kept"
    put_rows(store, 0, 2, 4)
    reads = Reads(store, monkeypatch)

    def both() -> tuple[list[Row], list[Row]]:
        return read_metrics(store, "kept", kept), read_samples(store, "kept", kept=kept)

    first = both()
    assert [row["step"] for row in first[0]] == [0, 0, 1, 2, 3, 4, 5]
    assert first == (read_metrics(store, "kept"), read_samples(store, "kept"))
    assert len(reads.names()) == 12
    put_rows(store, 6)
    found = both()
    assert reads.names() == ["metrics/1/00000006-00000007.jsonl", "telemetry/1/000006.jsonl"]
    assert found == (read_metrics(store, "kept"), read_samples(store, "kept"))

    reads.keys.clear()
    for path in kept.glob("*.jsonl"):
        path.write_bytes(path.read_bytes()[:-1])  # the machine went down
    assert both() == found
    assert len(reads.names()) == 8
    key = metrics_key("kept", 1, "00000006-00000007.jsonl")
    store.put(key, store.get(key).replace(b"1.0", b"2.0"))  # another run of this name, as long to the byte
    assert both()[0][-1]["train/loss"] == 2.0


def test_a_folder_that_can_keep_nothing_costs_only_time(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    put_rows(store, 0)
    (tmp_path / "file").write_bytes(b"")
    assert read_metrics(store, "kept", tmp_path / "file") == read_metrics(store, "kept")


def test_segments_are_read_several_at_once_and_come_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path))
    put_rows(store, *range(0, 200, 2))
    once = read_metrics(store, "kept")
    assert [row["step"] for row in once] == [0, *range(200)]
    reads = Reads(store, monkeypatch)
    reads.pair = threading.Barrier(2)  # breaks where one is read after the other
    assert read_metrics(store, "kept") == once
    assert len(reads.keys) == 100


def test_reports_beside_a_run_read_its_segments_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "store").mkdir()
    store = open_store(str(tmp_path / "store"))
    put_rows(store, 0, 2)
    drawn: list[int] = []

    def draw(summary: Summary, rows: Sequence[Row], *others: object) -> Report:
        drawn.append(len(rows))
        return Report(summary=summary, files={"index.html": b"page"})

    monkeypatch.setattr("trainer.report.draw_report", draw)
    reads = Reads(store, monkeypatch)
    for _ in range(2):
        into = ["--into", str(tmp_path / "report"), "--keep", str(tmp_path / "kept")]
        assert main(["--store", store.uri, "--run-id", "kept", *into]) == 0
    assert drawn == [5, 5]
    assert sum("metrics/" in key or "telemetry/" in key for key in reads.keys) == 4
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["index.html"]
