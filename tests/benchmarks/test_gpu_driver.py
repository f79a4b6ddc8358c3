"""The bench of the GPU loses one row by a crash, a hang or a kill, and its result on disk is whole at any time."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import driver
from benchmarks.gpu.driver import NO_TIME, measure_rows
from benchmarks.gpu.result import Result, card_name
from benchmarks.gpu.rows import ROWS, Row, chosen
from tests import ROOT

MACHINE = {"gpu": "NVIDIA H100 80GB HBM3", "commit": "new"}
WORKER = """
import json, os, signal, subprocess, sys, time
def tell(**message):
    print(json.dumps(message), flush=True)
tell(started={"gpu": "NVIDIA H100 80GB HBM3", "commit": "new"})
for name in sys.argv[1:]:
    tell(begin=name)
    if name == "crash":
        sys.exit("it broke")
    if name == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if name.startswith("run"):
        run = subprocess.Popen(["sleep", "600"], start_new_session=True)
        print(run.pid, file=sys.stderr, flush=True)
        name = name.split()[-1]
    if name == "crash":
        sys.exit("it broke")
    if name == "hang":
        time.sleep(600)
    if name == "broken":
        tell(row=name, found={"error": "CUDA error"})
        sys.exit(3)
    tell(row=name, found={"images_per_second": 100.0, "worker": os.getpid()})
"""
Found = dict[str, dict[str, Any]]


def row(name: str, process: str = "eager", seconds: int = 60) -> Row:
    return Row(name, "", "", process=process, seconds=seconds)


@pytest.fixture
def bench(tmp_path: Path) -> Callable[..., Found]:
    """Measures rows by a stand-in, which breaks at rows of certain names."""
    (tmp_path / "worker.py").write_text(WORKER)

    def measure(*rows: Row, seconds: float = 60) -> Found:
        found: Found = {}
        measure_rows(
            rows, lambda names: [sys.executable, str(tmp_path / "worker.py"), *names], environ={},
            log=tmp_path / "log", end=time.monotonic() + seconds, started=lambda machine: None,
            record=lambda row, one: found.update({row.name: one}),
        )  # fmt: skip
        return found

    return measure


@pytest.mark.parametrize(
    ("name", "reason"), [("crash", "exit code 1"), ("killed", "SIGKILL"), ("hang", "over its limit of 1 s")]
)
def test_a_row_that_breaks_or_hangs_is_said_and_costs_no_other(
    name: str, reason: str, bench: Callable[..., Found]
) -> None:
    found = bench(row("a"), row(name, seconds=1), row("b"), row("c"))
    assert reason in found[name]["error"]
    assert [one for one in found if "images_per_second" in found[one]] == ["a", "b", "c"]
    assert found["a"]["worker"] != found["b"]["worker"] == found["c"]["worker"]
    assert name != "crash" or "it broke" in found[name]["stderr"]


def test_a_worker_that_ends_after_telling_of_a_broken_gpu_costs_no_further_row(bench: Callable[..., Found]) -> None:
    found = bench(row("a"), row("broken"), row("b"))
    assert found["broken"] == {"error": "CUDA error"}
    assert found["b"]["images_per_second"] == 100.0


def test_rows_of_one_kind_share_a_process_and_others_get_their_own(bench: Callable[..., Found]) -> None:
    found = bench(row("a"), row("b"), row("c", "compiled"), row("d"))
    pids = [found[name]["worker"] for name in "abcd"]
    assert pids[0] == pids[1]
    assert len(set(pids)) == 3


def test_what_does_not_fit_into_the_limit_of_the_whole_is_named_as_not_measured(
    bench: Callable[..., Found], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bench(row("a"), row("b"), seconds=10) == {"a": {"not_measured": NO_TIME}, "b": {"not_measured": NO_TIME}}
    monkeypatch.setattr(driver, "LEAST_SECONDS", 0.5)
    found = bench(row("hang"), row("b"), seconds=1)
    assert found == {"hang": {"not_measured": NO_TIME}, "b": {"not_measured": NO_TIME}}


def test_what_a_worker_started_in_a_session_of_its_own_ends_with_it(bench: Callable[..., Found]) -> None:
    """As the trainer of a run does. The worker is killed over its limit in one row, and breaks in another."""
    for name in ("run and hang", "run and crash"):
        found = bench(row("a"), row(name, seconds=1))
        pid = int(found[name]["stderr"].split()[0])
        assert not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text(), name


def test_a_bench_that_is_killed_leaves_whole_json_and_no_process(tmp_path: Path) -> None:
    """The driver gets SIGKILL in the middle of a row, after one that was measured."""
    pid = tmp_path / "pid"
    stand_in = f"""
import json, os, sys, time
from benchmarks.gpu import worker
worker.end_with_driver()
open({str(pid)!r}, "w").write(str(os.getpid()))
def tell(**message):
    print(json.dumps(message), flush=True)
tell(started={MACHINE!r})
tell(begin="ours_bf16"), tell(row="ours_bf16", found={{"images_per_second": 1, "ms": 2}}), tell(begin="ours_fp16")
time.sleep(600)
"""
    (tmp_path / "stand_in.py").write_text(stand_in)
    arguments = ["--only", "ours_bf16,ours_fp16", "--out", str(tmp_path / "out"), "--scratch", str(tmp_path)]
    call = f"""
import sys
from benchmarks.gpu import __main__ as command
sys.executable = {str(tmp_path / "python")!r}
sys.exit(command.main({arguments!r}))
"""
    (tmp_path / "python").write_text(f"#!/bin/sh\nexec {sys.executable} {tmp_path / 'stand_in.py'}\n")
    (tmp_path / "python").chmod(0o755)
    process = subprocess.Popen([sys.executable, "-c", call], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert "ours_bf16" in process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    result = json.loads((tmp_path / "out/gpu-h100.json").read_text())
    assert result["rows"] == {"ours_bf16": {"images_per_second": 1, "ms": 2}}
    assert [json.loads(line)["name"] for line in (tmp_path / "out/gpu-h100.jsonl").read_text().splitlines()] == [
        "ours_bf16"
    ]
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid.read_text()}").exists():
        assert time.monotonic() < deadline, "the worker outlived its driver"
        time.sleep(0.02)


def add(result: Result, name: str, **found: Any) -> None:
    result.add(next(row for row in ROWS if row.name == name), found)


def test_a_later_call_adds_to_the_result_of_its_commit_and_replaces_that_of_another(tmp_path: Path) -> None:
    first = Result(tmp_path, MACHINE)
    add(first, "ours_bf16", images_per_second=100, ms=1)
    add(first, "ours_fp16", error="it broke", trace="/a/path")
    add(first, "peer_timm", not_measured="timm is not installed")
    second = Result(tmp_path, MACHINE)
    add(second, "ours_fp16", images_per_second=150, ms=1)
    add(second, "ceilings", copy_tb_s=3.0)
    found = json.loads((tmp_path / "gpu-h100.json").read_text())
    assert list(found["rows"]) == ["ours_bf16", "ours_fp16"]
    assert (found["failed"], found["ceilings"]) == ({}, {"copy_tb_s": 3.0})
    assert found["ratios"] == {"fp16_over_bf16_eager": 1.5}
    assert found.keys() == json.loads((ROOT / "benchmarks/results/gpu-h100.json").read_text()).keys()
    assert "machine" in found["not_measured"]
    other = Result(tmp_path, MACHINE | {"commit": "newer"})
    assert other.other == "new"
    add(other, "ours_bf16", images_per_second=1, ms=1)
    assert list(json.loads(other.path.read_text())["rows"]) == ["ours_bf16"]


def test_some_rows_at_another_commit_are_written_beside_the_result_and_not_over_it(tmp_path: Path) -> None:
    whole = Result(tmp_path, MACHINE)
    add(whole, "ours_bf16", images_per_second=100)
    before = whole.path.read_text()
    for _ in range(2):  # the second adds to the first
        some = Result(tmp_path, MACHINE | {"commit": "newer"}, some=True)
        assert (some.other, some.path.name) == ("new", "gpu-h100-some.json")
        add(some, "ours_bf16" if "ours_fp16" in some.found else "ours_fp16", images_per_second=1)
    assert list(json.loads(some.path.read_text())["rows"]) == ["ours_bf16", "ours_fp16"]
    assert whole.path.read_text() == before
    assert Result(tmp_path, MACHINE, some=True).path == whole.path


@pytest.mark.parametrize(
    "other",
    [
        {"gpu": "NVIDIA H100 PCIe"},
        {"driver": "581"},
        {"torch": "2.12"},
        {"commit": ""},
        {"commit": "new-dirty"},
        {"commit": "new and later changes"},
    ],
)
def test_rows_of_another_machine_or_of_unknown_code_are_not_added_to_a_result(
    tmp_path: Path, other: dict[str, str]
) -> None:
    known = MACHINE | {"driver": "580", "torch": "2.11"}
    for first, second in ((known, known | other), (known | other, known | other)):
        add(Result(tmp_path, first), "ours_bf16", images_per_second=100)
        kept = "ours_bf16" in Result(tmp_path, second).found
        assert kept == (first == second and "commit" not in other)


def test_a_row_that_fails_later_or_is_cut_off_keeps_the_figure_that_it_had(tmp_path: Path) -> None:
    for found in ({"error": "it broke"}, {"not_measured": NO_TIME}):
        add(Result(tmp_path, MACHINE), "ours_bf16", images_per_second=100)
        add(Result(tmp_path, MACHINE), "ours_bf16", **found)
        result = json.loads((tmp_path / "gpu-h100.json").read_text())
        assert result["rows"] == {"ours_bf16": {"images_per_second": 100}}
        assert result["failed"] == ({"ours_bf16": found} if "error" in found else {})


def test_ratios_are_over_the_best_peer_and_the_best_eager_row_that_were_measured(tmp_path: Path) -> None:
    result = Result(tmp_path, MACHINE)
    add(result, "compile_bf16", images_per_second=600, first_step_s=10, cold=False)
    add(result, "compile_warm", first_step_s=5)
    add(result, "peer_timm", images_per_second=200)
    add(result, "peer_ffcv", images_per_second=400)
    add(result, "peer_compile_nhwc_bf16", images_per_second=500)
    add(result, "ours_fp16", images_per_second=480)
    expected = {"ours_fp16_over_best_peer": 1.2, "compile_bf16_over_ours_fp16": 1.25,
                "compile_bf16_over_best_peer": 1.5, "compile_bf16_over_compiled_peer": 1.2,
                "compile_bf16_over_best_eager": 1.25}  # fmt: skip
    assert result.ratios() == expected
    add(result, "compile_bf16", images_per_second=600, first_step_s=10, cold=True)
    assert result.ratios() == expected | {"warm_first_step_times": 0.5}


def test_a_failure_has_its_reason_in_the_result_and_its_paths_only_in_the_lines(tmp_path: Path) -> None:
    result = Result(tmp_path, MACHINE)
    add(result, "ours_fp16", error="it broke", trace="/a/path", stderr="/a/path")
    assert json.loads(result.path.read_text())["failed"] == {"ours_fp16": {"error": "it broke"}}
    assert "/a/path" not in result.path.read_text()
    assert "/a/path" in result.lines.read_text()
    assert "FAILED ours_fp16: it broke" in result.table()


@pytest.mark.parametrize(
    ("gpu", "name"),
    [("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA A100-SXM4-80GB", "a100"), ("NVIDIA GeForce RTX 4090", "rtx-4090"),
     ("Tesla T4", "t4"), ("NVIDIA L40S", "l40s"), (None, "cpu")],
)  # fmt: skip
def test_the_result_is_named_after_the_card(gpu: str | None, name: str) -> None:
    assert card_name(gpu) == name


def test_only_takes_rows_by_name_and_says_which_name_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert [row.name for row in chosen("ours_fp16,ours_bf16")] == ["ours_bf16", "ours_fp16"]
    with pytest.raises(SystemExit):
        command.main(["--only", "ours_bf15"])
    assert "--only ours_bf15: no row has this name; --list shows them all" in capsys.readouterr().err
    assert command.main(["--list"]) == 0
    assert all(row.name in capsys.readouterr().out for row in ROWS[:1])


def names(rows: Sequence[Row]) -> list[str]:
    return [row.name for row in rows]


def test_no_two_rows_have_one_name() -> None:
    assert len(set(names(ROWS))) == len(ROWS)
