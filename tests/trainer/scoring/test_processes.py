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
    index = prepare_images(tmp_path, val=5)  # 20 images, and with one more than the other has in a batch
    for seed, name in enumerate("ab"):
        put_run(tmp_path, index, name, seed=seed)
    asked = ["a,b", "--batch-size", "3", "--views", "flip", "--sweep", "32", "--soup", "uniform"]
    assert main([*asked, "--output", str(tmp_path / "one.json")]) == Exit.FINISHED
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "trainer.evaluate", *asked, "--output", str(tmp_path / "two.json")]
    quiet = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | quiet, capture_output=True, text=True, check=False, timeout=300
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("val_tta/top1") == 1, "one process speaks"
    all_one, all_two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    kinds = [(found["evaluations"][0], found["evaluations"][1], found["ensemble"]) for found in (all_one, all_two)]
    for one, two in zip(*kinds, strict=True):
        assert one["scores"] == pytest.approx(two["scores"], rel=1e-5)
        (top1,) = (name for name in one["scores"] if name.endswith("/top1"))
        assert one["scores"][top1] == two["scores"][top1]
        assert (one["classes"], one["data"]["images"]) == (two["classes"], 20)
        assert [mistake["image"] for mistake in one["mistakes"]] == [mistake["image"] for mistake in two["mistakes"]]
        assert one["sweep"] == two["sweep"]
    assert all_one["evaluations"][0]["sweep"] is not None
    assert [found["soup"]["statistics_images"] for found in (all_one, all_two)] == [3, 4], (
        "batches of 3, and of 2 and 2"
    )
    assert all_one["ensemble"]["gain"] == all_two["ensemble"]["gain"]
    assert not list((tmp_path / "scratch").glob("predictions-*"))


def test_processes_on_several_machines_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    with (
        pytest.raises(UserError, match="one machine"),
        predictions_folder(tmp_path, World(0, 0, 2, torch.device("cpu"))),
    ):
        pass
