"""How torchrun's processes meet between machines: network namespaces, without the trainer's own work."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT
from tests.chaos.lab import wait_for
from tests.chaos.machines import build_clock
from tests.chaos.network import Host, Network
from trainer.contract import RunEnv
from trainer.process.nodes import torchrun_environ

pytestmark = pytest.mark.slow

WORKER = """
import os, time
from trainer.learning.world import is_head, main_of, meeting_point
store, rank, size = meeting_point(os.environ), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
print("rank", rank, "of", size, "main", main_of(store, rank, size, is_head(os.environ)), flush=True)
if size == 1: time.sleep(100)
time.sleep(1)
"""


def test_a_machine_that_trained_alone_meets_one_with_a_lower_address_and_another_clock(tmp_path: Path) -> None:
    """torchrun numbers machines by address, so the one that was the first becomes the second. It judges them by the
    clock, which is an hour behind here."""
    (tmp_path / "worker.py").write_text(WORKER)
    (tmp_path / "clock").write_bytes(struct.pack("=q", -3600))
    wrong_clock = {"LD_PRELOAD": str(build_clock(tmp_path)), "CHAOS_CLOCK_FILE": str(tmp_path / "clock")}

    def begin(host: Host, *, is_head: bool) -> tuple[subprocess.Popen[bytes], Path]:
        run = RunEnv(store="", run_id="run", scratch_dir="", nodes="2", address=host.address, attempt="1")
        told = torchrun_environ(run, f"{head.address}:29500", 1.0, is_head=is_head, given={})
        told |= {"GLOO_SOCKET_IFNAME": "eth0", "PET_NPROC_PER_NODE": "1", "PYTHONPATH": str(ROOT)}
        told |= {} if is_head else wrong_clock
        words = [sys.executable, "-m", "torch.distributed.run", str(tmp_path / "worker.py")]
        with (tmp_path / host.name).open("wb") as output:
            return host.start(words, ROOT, env=os.environ | told, stdout=output, stderr=output), tmp_path / host.name

    with Network(tmp_path) as network:
        newcomer, head = network.add(), network.add()
        first, said = begin(head, is_head=True)
        wait_for(lambda: "rank 0 of 1" in said.read_text(), 120, "the head begins alone")
        second, answer = begin(newcomer, is_head=False)
        assert [first.wait(150), second.wait(150)] == [0, 0], said.read_text() + answer.read_text()
        assert "rank 1 of 2 main 1" in said.read_text()
        assert "rank 0 of 2 main 1" in answer.read_text()
