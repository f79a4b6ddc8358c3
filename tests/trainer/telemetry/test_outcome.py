"""How an attempt ends when the GPU fails in the middle: a crash, which the next start gets over, told in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.lab import CONFIG, SAVE_EACH_STEP, WORLD, Lab
from trainer import train as module
from trainer.checkpoint.saver import Checkpointer
from trainer.contract import CRASH, Exit
from trainer.learning.state import State
from trainer.learning.step import train_step
from trainer.learning.world import World
from trainer.process.channel import exit_file, read_json
from trainer.telemetry.outcome import tell_outcome

FAULT = "CUDA error: unspecified launch failure\nCUDA kernel errors might be reported at some other API call\n\n"


@pytest.mark.parametrize("closes", [True, False], ids=["", "and cleaning up fails, too"])
def test_a_gpu_that_is_lost_in_the_middle_is_a_crash_of_one_line_and_the_run_goes_on_from_its_checkpoint(
    lab: Lab, tmp_path: Path, capfd: pytest.CaptureFixture[str], closes: bool
) -> None:
    def broken(state: State, *rest: Any) -> torch.Tensor:
        if state.step == 4:
            raise torch.AcceleratorError(FAULT)
        return train_step(state, *rest)

    def fail(checkpointer: Checkpointer) -> None:
        raise RuntimeError("the memory cannot be unregistered")

    with lab.monkeypatch.context() as patched:
        patched.setattr(module, "train_step", broken)
        if not closes:
            patched.setattr(Checkpointer, "close", fail)
        config = replace(CONFIG, checkpoint=SAVE_EACH_STEP)
        assert tell_outcome(lambda: lab.train(config), tmp_path, WORLD) == CRASH
    ended = read_json(tmp_path / "exit.json")
    assert ended is not None
    assert ended["code"] == CRASH
    assert not ended["run_failed"]
    assert ended["message"].startswith("the GPU failed (CUDA error: unspecified launch failure): start again")
    assert "\n" not in ended["message"]
    assert "Traceback" not in capfd.readouterr().err
    assert lab.train(config) == (Exit.FINISHED, "6 steps are done")
    assert [row["step"] for row in lab.rows() if "train/loss" in row] == [1, 2, 3, 4, 5, 6]
    assert "from step 4 of 6" in capfd.readouterr().err


@pytest.mark.parametrize(
    "error",
    [RuntimeError("expected 3 channels"), torch.AcceleratorError("CUDA error: operation not permitted when capturing")],
)
def test_another_error_is_a_crash_with_its_name_and_its_traceback(lab: Lab, tmp_path: Path, error: Exception) -> None:
    def broken(*arguments: Any) -> None:
        raise error

    lab.monkeypatch.setattr(module, "train_step", broken)
    with pytest.raises(type(error), match=str(error)):
        tell_outcome(lab.train, tmp_path, WORLD)
    assert read_json(tmp_path / "exit.json") == {
        "code": CRASH, "message": f"{type(error).__name__}: {error}", "run_failed": False, "lost_partner": False,
    }  # fmt: skip


@pytest.mark.parametrize("code", [Exit.FINISHED, Exit.INTERRUPTED])
def test_a_process_that_ends_well_leaves_no_sign_of_one_that_died(tmp_path: Path, code: Exit) -> None:
    """The first one of its machine tells how the attempt ended."""
    exit_file(tmp_path).write_bytes(b" ")
    assert tell_outcome(lambda: (code, ""), tmp_path, World(1, 1, 2, torch.device("cpu"))) == 0
    assert not any(tmp_path.iterdir())
