"""The supervisor and what it stands on: standard library only, exit codes, and how it counts GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from tests.runs import ROOT
from trainer.channel import leave_exit, read_json, write_json
from trainer.contract import Exit, Head, RunEnv, UserError
from trainer.supervise import gpu_count, process_count

LOADED = "import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"


@pytest.mark.parametrize("module", ["trainer.contract", "trainer.supervise", "trainer.channel"])
def test_it_loads_nothing_but_the_standard_library(module: str) -> None:
    code = LOADED.format(module=module)
    ended = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    foreign = set(ended.stdout.split()) - set(sys.stdlib_module_names) - {"trainer", "__main__", "__mp_main__"}
    assert not foreign


def test_the_exit_codes_are_those_of_the_table() -> None:
    assert {code.name: int(code) for code in Exit} == {"FINISHED": 0, "INTERRUPTED": 75, "HELD": 76, "USER": 78}


def test_the_environment_round_trips_and_passes_strings_through_untouched() -> None:
    env = RunEnv(store="${Token[TOKEN.12]}", run_id="a-1", scratch_dir="/scratch", data="x", attempt="3")
    assert RunEnv.from_environ(env.to_environ()) == env
    assert env.to_environ()["TRAINER_STORE"] == "${Token[TOKEN.12]}"
    assert len({RunEnv.variable(f.name) for f in fields(RunEnv)}) == len(fields(RunEnv))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("TRAINER_STORE", "", "TRAINER_STORE is not set"), ("TRAINER_RUN_ID", "../x", "'../x' is not a run id"),
     ("TRAINER_ATTEMPT", "one", "TRAINER_ATTEMPT='one' is not a number")],
)  # fmt: skip
def test_a_bad_variable_is_named_with_its_value(name: str, value: str, said: str) -> None:
    good = {"TRAINER_STORE": "out", "TRAINER_RUN_ID": "r", "TRAINER_SCRATCH_DIR": "s"}
    with pytest.raises(UserError) as error:
        RunEnv.from_environ(good | {name: value})
    assert said in str(error.value)


def test_the_head_keeps_the_newest_the_previous_and_the_best() -> None:
    head = Head(attempt=1).advance("a", is_best=True).advance("b", is_best=False).advance("c", is_best=False)
    assert (head.newest, head.previous, head.best) == ("c", "b", "a")
    assert head.advance("c", is_best=False) == head, "a commit that is repeated moves nothing"
    assert head.advance("c", is_best=True).best == "c", "unless a validation has found it to be the best meanwhile"
    assert Head.from_json(head.to_json()) == head


def test_gpus_are_counted_as_the_trainer_will_see_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = tmp_path / "nvidia-smi"
    listing.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA A10G (UUID: GPU-1)'\necho 'GPU 1: NVIDIA A10G (UUID: GPU-2)'\n")
    listing.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpu_count() == 2
    for visible, count in (("0", 1), ("0,1,2", 3), ("", 0), ("-1", 0)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert gpu_count() == count
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", "/nowhere")
    assert gpu_count() == 0


def test_the_first_process_to_leave_a_reason_is_the_one_that_counts(tmp_path: Path) -> None:
    leave_exit(tmp_path, 78, "labels out of range", run_failed=True)
    leave_exit(tmp_path, 75, "stopped by torchrun")
    assert read_json(tmp_path / "exit.json") == {"code": 78, "message": "labels out of range", "run_failed": True}


def test_a_small_file_is_replaced_at_once_and_its_absence_is_not_an_error(tmp_path: Path) -> None:
    assert read_json(tmp_path / "none.json") is None
    for value in (1, 2):
        write_json(tmp_path / "some.json", {"value": value})
    assert read_json(tmp_path / "some.json") == {"value": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["some.json"]


def test_processes_are_as_many_as_share_the_batch_and_fewer_than_gpus_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert process_count(0, 32, 32) == 1
    assert process_count(4, 512, 128) == 4
    assert capsys.readouterr().err == ""
    assert process_count(8, 512, 128) == 4
    assert "using 4 of 8 GPUs" in (said := capsys.readouterr().err)
    assert "--device-batch-size 64" in said
    assert process_count(2, 256, 48) == 1, "the trainer says what is wrong"
