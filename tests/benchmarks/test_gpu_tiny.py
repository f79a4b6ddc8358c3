"""Every row of the GPU's bench but those that need CUDA runs on a CPU: a box with a GPU is too rare for mistakes.

test_gpu_rows.py validates the options of those that need CUDA.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from benchmarks.fusion_bytes import PROFILES
from benchmarks.gpu import __main__ as command
from benchmarks.gpu.result import RATIOS
from benchmarks.gpu.rows import ROWS, RUNS, Row


def measured(tmp_path: Path, images: Path, rows: Iterable[Row]) -> set[str]:
    """The rows that were measured. None has failed; the others say that they need a GPU, or what is not installed."""
    rows = list(rows)
    arguments = ["--tiny", "--only", ",".join(row.name for row in rows), "--out", str(tmp_path / "out")]
    code = command.main([*arguments, "--scratch", str(tmp_path / "scratch"), "--images", str(images)])
    found = json.loads((tmp_path / "out/gpu-cpu.json").read_text())
    assert found["failed"] == {}
    assert code == 0
    lines = [json.loads(line) for line in (tmp_path / "out/gpu-cpu.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == [row.name for row in rows]
    for line in lines:
        assert "not_measured" not in line or line.get("needs") == "cuda" or "not installed" in line["not_measured"]
    assert str(tmp_path) not in (tmp_path / "out/gpu-cpu.json").read_text()
    return {line["name"] for line in lines if "not_measured" not in line}


@pytest.mark.slow
def test_every_row_that_runs_in_one_process_works(tmp_path: Path, digits_folder: Path) -> None:
    rows = [row for row in ROWS if row.process != RUNS]
    found = measured(tmp_path, digits_folder.parents[2], rows)
    assert found >= {row.name for row in rows if not row.needs and row.name != "peer_timm"}
    result = json.loads((tmp_path / "out/gpu-cpu.json").read_text())
    named = {one: ratio for one, ratio in RATIOS.items() if one != "warm_first_step_times"}
    rows_of = {one: {path.split(".")[0] for path in (above, *([below] if isinstance(below, str) else ()))}
               for one, (above, below) in named.items()}  # fmt: skip
    assert result["ratios"].keys() >= {one for one, names in rows_of.items() if names <= found}
    assert all(result["rows"][name].keys() >= {"ms", "by_kind_ms"} for name in PROFILES)


@pytest.mark.slow
def test_whole_runs_through_the_supervisor_work_and_one_that_was_interrupted_has_the_same_bits(
    tmp_path: Path, digits_folder: Path
) -> None:
    rows = [row for row in ROWS if row.process == RUNS]
    assert measured(tmp_path, digits_folder.parents[2], rows) == {row.name for row in rows}
    found = json.loads((tmp_path / "out/gpu-cpu.json").read_text())["rows"]
    assert found["run_interrupted"]["same_bits_as_whole"]
    assert (found["run_interrupted"]["before"]["exit"], found["run_interrupted"]["after"]["exit"]) == (75, 0)
