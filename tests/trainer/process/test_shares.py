"""Whether a step has micro-batches for all machines of a run: what is refused before anything starts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trainer.contract import RunEnv, UserError
from trainer.process.nodes import check_shares

ENV = RunEnv(store="out", run_id="r", scratch_dir="s", nodes="4")


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
    recipe, env = {"global_batch_size": batch, "device_batch_size": device}, replace(ENV, nodes=nodes)
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
