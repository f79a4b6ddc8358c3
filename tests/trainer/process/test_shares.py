"""Whether a step has micro-batches for all machines of a run: what is refused before anything starts."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT
from trainer.contract import Exit, RunEnv, UserError
from trainer.process.nodes import check_shares

ENV = RunEnv(store="out", run_id="r", scratch_dir="s", nodes="4")


def told(batch: int, device: int, *, cuda_graphs: bool = False, sync_norm: bool = False) -> dict[str, Any]:
    sizes = {"global_batch_size": batch, "device_batch_size": device}
    return sizes | {"cuda_graphs": cuda_graphs, "sync_norm": sync_norm}


@pytest.mark.parametrize(
    ("nodes", "batch", "device", "processes", "fits"),
    [
        ("4", 512, 64, 2, ""),
        ("1", 64, 64, 2, ""),
        ("4", 512, 64, 3, "use NODES=2 or NPROC=2 or --device-batch-size 32"),
        ("4", 96, 96, 1, "use NODES=1 or --device-batch-size 24"),
        ("4", 100, 50, 1, "use NODES=2 or --device-batch-size 25"),
        ("4", 3, 1, 1, "use NODES=3"),
    ],
)
def test_more_processes_than_micro_batches_are_refused_with_what_fits(
    nodes: str, batch: int, device: int, processes: int, fits: str
) -> None:
    recipe, env = told(batch, device), replace(ENV, nodes=nodes)
    if not fits:
        check_shares(env, recipe, processes)
        return
    with pytest.raises(UserError) as error:
        check_shares(env, recipe, processes)
    needed = f"NODES=4: with {processes} processes on each machine a step needs {4 * processes} micro-batches, and it"
    assert needed in str(error.value)
    assert str(error.value).endswith(fits)
    if "--device" in fits:
        check_shares(env, recipe | {"device_batch_size": int(fits.rpartition(" ")[2])}, processes)


@pytest.mark.parametrize(
    ("nodes", "batch", "device", "processes", "fits"),
    [
        ("1", 512, 64, 3, ""),
        ("2", 512, 64, 4, ""),
        ("4", 768, 64, 1, ""),
        ("4", 512, 64, 1, "use NODES=2 or --no-model.sync-norm"),
        ("4", 768, 96, 1, "use NODES=2 or --device-batch-size 64 or --no-model.sync-norm"),
        ("3", 768, 96, 2, "use NODES=2 or --device-batch-size 64 or --no-model.sync-norm"),
        ("2", 512, 64, 3, "use --no-model.sync-norm"),
    ],
)
def test_norms_that_wait_for_each_other_are_refused_where_a_lost_machine_would_leave_uneven_shares(
    nodes: str, batch: int, device: int, processes: int, fits: str
) -> None:
    recipe, env = told(batch, device, sync_norm=True), replace(ENV, nodes=nodes)
    if not fits:
        check_shares(env, recipe, processes)
        return
    check_shares(env, recipe | {"sync_norm": False}, processes)
    with pytest.raises(
        UserError, match=rf"NODES={nodes} with --model\.sync-norm: .* must share out the \d+ micro"
    ) as error:
        check_shares(env, recipe, processes)
    assert str(error.value).endswith(fits)
    if "--device" in fits:
        check_shares(env, recipe | {"device_batch_size": int(fits.split()[4])}, processes)


def test_cuda_graphs_are_refused_for_several_machines() -> None:
    recipe = told(512, 64, cuda_graphs=True)
    check_shares(replace(ENV, nodes="1"), recipe, 1)
    with pytest.raises(
        UserError, match="NODES=4: --cuda-graphs works for one process; pass --no-cuda-graphs, or NODES=1"
    ):
        check_shares(ENV, recipe, 1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--model.sync-norm", "--no-compile"), "error: NODES=4 with --model.sync-norm: "),
        (("--cuda-graphs",), "error: NODES=4: --cuda-graphs works for one process"),
    ],
)
def test_a_run_that_cannot_train_on_fewer_machines_does_not_start(
    options: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    sizes = ("digits", "--global-batch-size", "512", "--device-batch-size", "64")
    given = {"TRAINER_NODES": "4", "TRAINER_ADDRESS": "127.0.0.2", "PET_NPROC_PER_NODE": "1"}
    given |= {"TRAINER_STORE": str(tmp_path / "store"), "TRAINER_SCRATCH_DIR": str(tmp_path / "scratch")}
    ended = subprocess.run(
        [sys.executable, "-m", "trainer.process.supervise", *sizes, *options],
        env=os.environ | given, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (ended.returncode, said in ended.stdout + ended.stderr) == (Exit.USER, True), ended
    assert not (tmp_path / "store").exists()
