"""Evaluation by several processes, as torchrun starts them: every image once, and the scores of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import ROOT
from tests.trainer.scoring.made import environment, prepare_images, put_run
from trainer.contract import Exit, UserError
from trainer.evaluate import main
from trainer.learning.world import World
from trainer.scoring.passes import predictions_folder

pytestmark = pytest.mark.slow


def test_two_processes_score_each_image_once_and_as_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    put_run(tmp_path, prepare_images(tmp_path, val=5))  # 20 images, and with one more than the other has in a batch
    assert main(["--output", str(tmp_path / "one.json"), "--batch-size", "3"]) == Exit.FINISHED
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "trainer.evaluate", "--output", str(tmp_path / "two.json"), "--batch-size", "3"]
    quiet = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | quiet, capture_output=True, text=True, check=False, timeout=300
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("val/top1") == 1, "one process speaks"
    one, two = (json.loads((tmp_path / f"{name}.json").read_text())["evaluations"][0] for name in ("one", "two"))
    assert one["scores"] == pytest.approx(two["scores"], rel=1e-5)
    assert one["scores"]["val/top1"] == two["scores"]["val/top1"]
    assert (one["classes"], one["data"]["images"]) == (two["classes"], 20)
    assert [mistake["image"] for mistake in one["mistakes"]] == [mistake["image"] for mistake in two["mistakes"]]
    assert not list((tmp_path / "scratch").glob("predictions-*"))


def test_processes_on_several_machines_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    with (
        pytest.raises(UserError, match="one machine"),
        predictions_folder(tmp_path, World(0, 0, 2, torch.device("cpu"))),
    ):
        pass
