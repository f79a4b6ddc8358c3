"""One run on several machines, which are network namespaces: to start, watch, disturb and wait for."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import ROOT
from tests.chaos.lab import Lab, WrongError, expect, wait_for
from tests.chaos.network import GIGABIT, Host, Network
from tests.chaos.runs import RUN, RealRun, digits_data
from trainer.contract import CRASH, Exit
from trainer.process.counts import PROCESSES
from trainer.process.nodes import BROKEN
from trainer.store import open_store

# A network without BatchNorm, and few large steps: more of them make of a rounding another training.
OPTIONS = (
    "digits", "--epochs", "9", "--global-batch-size", "256", "--device-batch-size", "32", "--deterministic",
    "--model.name", "squeezenet1_1", "--log-every-steps", "1", "--checkpoint.every-seconds", "2",
    "--data.workers", "1", "--optim.peak-lr", "0.002",
)  # fmt: skip
STEPS = 9 * 5
START_SECONDS = 150  # until the first step; four machines on two cores import torch and join
MOST_STARTS = 8  # of one machine
STEPS_SECONDS = 300  # for all of them
CLOCK = Path(__file__).with_name("clock.c")


def build_clock(folder: Path) -> Path:
    library = folder / "clock.so"
    if not library.exists():
        command = ["gcc", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-O1", "-o", str(library), str(CLOCK)]
        subprocess.run(command, check=True)
    return library


@dataclass
class Machine:
    """One host of the run, with a folder and a clock of its own."""

    host: Host
    folder: Path
    environ: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    outputs: list[Path] = field(default_factory=list)
    is_lost: bool = False  # whoever disturbed it does not expect an end of it

    def start(self) -> None:
        """The command, as boot gives it, again and again."""
        self.outputs.append(self.folder / f"output-{len(self.outputs)}.txt")
        words = [sys.executable, "-m", "trainer.process.supervise", *OPTIONS]
        with self.outputs[-1].open("wb") as output:
            self.process = self.host.start(words, ROOT, env=self.environ, stdout=output, stderr=subprocess.STDOUT)
        self.is_lost = False

    def output(self) -> str:
        return "".join(path.read_text(errors="replace") for path in self.outputs)

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def pids(self, module: str) -> list[int]:
        """Its processes of this module."""
        found = []
        for pid in self.host.pids():
            with contextlib.suppress(OSError):
                if module.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                    found.append(pid)
        return found

    def signal(self, module: str, number: int) -> bool:
        pids = self.pids(module)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return bool(pids)

    def die(self, *, silently: bool) -> None:
        """The end of the machine. Silently: as if its power was cut, so that no closed connection tells the others."""
        if silently:
            self.host.cut()
        self.host.kill()
        self.is_lost = True

    def boot(self) -> None:
        """A machine that was lost comes back, with its disk, and starts the same command."""
        self.host.boot()
        self.start()

    def set_clock(self, seconds: int) -> None:
        with (self.folder / "clock").open("r+b") as file:  # in place: the processes have it mapped
            file.write(struct.pack("=q", seconds))

    def statuses(self) -> list[tuple[int, str, int]]:
        """(attempt, phase, step) of each attempt that it led."""
        found = []
        for path in (self.folder / "scratch/runs" / RUN).glob("[0-9]*/status.json"):
            with contextlib.suppress(OSError, ValueError):
                value = json.loads(path.read_text())
                found.append((int(path.parent.name), str(value.get("phase")), int(value.get("step") or 0)))
        return found


class Watch:
    """Looks every 30 ms at who trains: when each attempt made its first new step, by this process's clock."""

    def __init__(self, machines: list[Machine]):
        self.machines, self.ended = machines, threading.Event()
        self.first: dict[int, int] = {}  # the first step that was seen, by attempt
        self.moved: dict[int, float] = {}  # when another one was seen
        self.step, self.attempt = 0, 0
        self.thread = threading.Thread(target=self.look, daemon=True)
        self.thread.start()

    def look(self) -> None:
        while not self.ended.wait(0.03):
            for machine in self.machines:
                for attempt, phase, step in machine.statuses():
                    if phase != "training":
                        continue
                    if self.first.setdefault(attempt, step) != step:
                        self.moved.setdefault(attempt, time.monotonic())
                    self.attempt = max(self.attempt, attempt)
                    self.step = max(self.step, step)

    def next_step(self, attempt: int) -> float:
        """When an attempt after this one made a step, or 0."""
        return min((at for number, at in self.moved.items() if number > attempt), default=0.0)

    def close(self) -> None:
        self.ended.set()
        self.thread.join()


@dataclass
class Group:
    """All machines of the run, the network that joins them and the store's end of it."""

    lab: Lab
    network: Network
    machines: list[Machine]
    real: RealRun  # reads the store
    watch: Watch

    @property
    def alive(self) -> list[Machine]:
        return [machine for machine in self.machines if machine.is_running and not machine.is_lost]

    def lease(self) -> dict[str, Any]:
        return self.lab.proxy.leases[-1][1] if self.lab.proxy.leases else {}

    def head(self) -> Machine:
        """Whose address the lease gives for the others; of those that are there."""
        address = str(self.lease().get("rendezvous", "")).rsplit(":", 1)[0]
        return next((machine for machine in self.alive if machine.host.address == address), self.alive[0])

    def tend(self) -> None:
        """Start the command again where it ended so that boot would: after a crash, and where another has the run."""
        for machine in self.machines:
            code = machine.process.poll() if machine.process and not machine.is_lost else None
            if code in (CRASH, BROKEN, Exit.HELD) and len(machine.outputs) < MOST_STARTS:
                machine.start()

    def wait(self, ready: Callable[[], Any], seconds: float, what: str) -> None:
        """Until it is so, or until nobody is left who could make it so."""

        def is_over() -> bool:
            self.tend()
            return bool(ready()) or not self.alive

        try:
            wait_for(is_over, seconds, what)
        except WrongError as error:
            raise WrongError(f"{error}\n{self.said()}") from None

    def wait_for_step(self, step: int) -> None:
        self.wait(lambda: self.watch.step >= step, STEPS_SECONDS, f"step {step}")

    def said(self) -> str:
        """The last lines of every machine."""
        parts = []
        for machine in self.machines:
            lines = [line for line in machine.output().splitlines() if not line.startswith("step ")]
            code = machine.process.poll() if machine.process else "not started"
            parts.append(f"{machine.host.name} (code {code}): " + "\n  ".join(lines[-8:]))
        return "\n".join(parts)[-3000:]

    def codes(self) -> dict[str, int | None]:
        """Of the machines that have started: a late one may come too late."""
        return {m.host.name: m.process.poll() for m in self.machines if m.process and not m.is_lost}

    def close(self) -> None:
        self.watch.close()


@contextlib.contextmanager
def group_of(lab: Lab, count: int, rate: float = GIGABIT, processes: int = 1) -> Iterator[Group]:
    """Machines that have not started the command yet, which is to start so many processes, and a fresh store that all
    of them see.
    """
    data = digits_data(lab)
    lab.new_try(s3=True)
    library = build_clock(lab.folder)
    with Network(lab.place) as network, network.listener() as listener, lab.proxy.serve_at(listener):
        host, port = listener.getsockname()
        base = {k: v for k, v in lab.base.items() if k != "TRAINER_LEASE_SECONDS"} | lab.environ
        base |= {
            "TRAINER_RUN_ID": RUN, "TRAINER_DATA": str(data), "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "TRAINER_NODES": str(count), "LD_PRELOAD": str(library), PROCESSES: str(processes),
        }  # fmt: skip
        machines = []
        for number in range(1, count + 1):
            folder = lab.place / f"machine-{number}"
            folder.mkdir()
            (folder / "clock").write_bytes(bytes(8))
            mine = {
                "TRAINER_NODE": f"node-{number}", "TRAINER_SCRATCH_DIR": str(folder / "scratch"),
                "CHAOS_CLOCK_FILE": str(folder / "clock"),
            }  # fmt: skip
            machines.append(Machine(network.add(rate), folder, base | mine))
        group = Group(lab, network, machines, RealRun(lab, open_store(lab.uri), base), Watch(machines))
        try:
            yield group
        finally:
            group.close()


def start_all(group: Group, machines: list[Machine]) -> None:
    """Start them, and wait for the first steps of training."""
    for machine in machines:
        machine.start()
    group.wait(lambda: group.watch.moved, START_SECONDS, "a first step")
    expect(bool(group.watch.moved), f"all ended before the first step: {group.said()}")
