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
from tests.chaos.network import Host, Network, network_of
from trainer.contract import CRASH, RunEnv
from trainer.process.nodes import torchrun_environ

pytestmark = pytest.mark.slow

STORE_PORT = 29400

WORKER = """
import os, time
from trainer.learning.meeting import Meeting, is_head, meeting_point
store, rank, size = meeting_point(os.environ), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
main = Meeting(store, rank, size, "", print).main_of(is_head(os.environ))
print("rank", rank, "of", size, "main", main, flush=True)
if size == 1: time.sleep(100)
time.sleep(1)
"""

JOINER = """
import os, sys
from trainer.contract import MachineError
from trainer.learning import meeting
meeting.CONNECTING_SECONDS, meeting.NO_ANSWER_SECONDS = 5, 3
tell = lambda message: print(message, flush=True)
try:
    point = meeting.meeting_point(os.environ)
    print("here", flush=True)
    meeting.meeting_point = lambda environ: point
    meeting.meet(os.environ, "gloo", tell)
except MachineError as error:
    tell(error)
    sys.exit(1)
"""

ASK = """
import sys
from trainer.contract import RunEnv
from trainer.process.nodes import as_node, meeting_place
env = as_node(RunEnv(store="", run_id="run", scratch_dir="", nodes="2", rendezvous=sys.argv[1]))
print(env.address, meeting_place(env) or "joins")
"""


def test_the_same_rendezvous_tells_one_machine_to_lead_and_the_other_one_to_join(tmp_path: Path) -> None:
    """Each finds its own address on the way there."""
    with Network(tmp_path) as network:
        head, other = network.add(), network.add()
        place = f"{head.address}:29500"
        for host, does in ((head, place), (other, "joins")):
            asked = host.start([sys.executable, "-c", ASK, place], ROOT, env=os.environ, stdout=subprocess.PIPE)
            assert asked.communicate(timeout=60)[0].decode().split() == [host.address, does]


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


def join(hosts: list[Host], size: int) -> list[subprocess.Popen[bytes]]:
    """A process on each of the machines, without torchrun; what each says is in a file of its machine's name."""
    processes = []
    for number, host in enumerate(hosts):
        told = {
            "RANK": str(number), "WORLD_SIZE": str(size), "GROUP_RANK": str(number), "LOCAL_RANK": "0",
            "MASTER_ADDR": hosts[0].address, "MASTER_PORT": str(STORE_PORT), "TRAINER_ADDRESS": host.address,
            "GLOO_SOCKET_IFNAME": "eth0", "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        with said_by(host).open("wb") as output:
            words, there = [sys.executable, "-c", JOINER], {"stdout": output, "stderr": subprocess.STDOUT}
            processes.append(host.start(words, ROOT, env=os.environ | told, **there))
    return processes


def said_by(host: Host) -> Path:
    return host.network.folder / host.name


def test_machines_that_let_only_the_meeting_point_through_say_so(tmp_path: Path) -> None:
    with network_of(tmp_path, 2) as hosts:
        for host in hosts:
            host.let_through(STORE_PORT)
        assert [process.wait(60) for process in join(hosts, size=2)] == [1, 1]
        for host in hosts:
            assert (
                f"processes reached the meeting point 10.77.0.1:{STORE_PORT}, but not all the others, within 5 s: 0 on "
                "10.77.0.1, 1 on 10.77.0.2 (Connect timeout"
            ) in said_by(host).read_text()
            assert "must let TCP from every other one through, to all ports above 1023" in said_by(host).read_text()


def test_members_that_reach_the_head_and_not_each_other_are_named_also_by_the_head(tmp_path: Path) -> None:
    with network_of(tmp_path, 3) as hosts:
        hosts[1].refuse(hosts[2].address)
        assert [process.wait(60) for process in join(hosts, size=3)] == [1, 1, 1]
        for host in hosts:
            assert "within 5 s: 1 on 10.77.0.2, 2 on 10.77.0.3 (Connect timeout" in said_by(host).read_text()


def test_a_meeting_point_whose_machine_loses_its_power_is_not_waited_for(tmp_path: Path) -> None:
    """torch itself waits there without an end: nothing closes the connection."""
    with network_of(tmp_path, 2) as hosts:
        processes = join(hosts, size=3)
        wait_for(lambda: all("here" in said_by(host).read_text() for host in hosts), 60, "two of three have come")
        hosts[0].cut()
        hosts[0].kill()
        assert processes[1].wait(30) == CRASH
        assert f"the meeting point 10.77.0.1:{STORE_PORT} has not answered for 3 s" in said_by(hosts[1]).read_text()
