"""How the processes of a run meet: at torchrun's store, then each with each. What is missing is named, and in time.

Nobody looks after the others yet (`lookout.py` does later), so everything here has an end of its own.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed
from torch.distributed.distributed_c10d import PrefixStore, Store, _set_pg_timeout
from torch.distributed.rendezvous import rendezvous

from trainer.contract import CRASH, MachineError

IS_HEAD = "TRAINER_IS_HEAD"  # "1" on the machine that owns the run, "0" on the others; unset: torchrun's first one
# torchrun starts all processes when all machines are there. A busy machine may import torch for a minute.
MEETING_SECONDS = 90.0
CONNECTING_SECONDS = 75.0  # 128 processes are 127 connections each, and all of them are there by then
NO_ANSWER_SECONDS = 20.0  # of the store
ROLL_CALL_SECONDS = 0.2  # between two looks at who is there
PATIENCE = timedelta(hours=24)  # of later collectives: the others wait while one prepares
OPEN_PORTS = "Every machine must let TCP from every other one through, to all ports above 1023, in both directions"


def meet(environ: Mapping[str, str], backend: str, tell_last: Callable[[str], object]) -> int:
    """Join the process group that torchrun announced. Returns the rank of this process in it.

    Raises MachineError. Where the store keeps silent, `tell_last` gets the message, and the process ends: torch waits
    without an end for the answer of a machine that has lost its power.
    """
    place = f"{environ['MASTER_ADDR']}:{environ['MASTER_PORT']}"
    rank, size = int(environ["RANK"]), int(environ["WORLD_SIZE"])
    try:
        meeting = Meeting(meeting_point(environ), rank, size, place, tell_last)
        main = meeting.main_of(is_head(environ))
        meeting.connect(backend, main)
    except torch.distributed.DistError as error:
        raise MachineError(
            f"the meeting point {place} does not answer any more ({first_line(error)}): the machine or the process "
            f"there has ended; see its output, and start again. {OPEN_PORTS}"
        ) from error
    return (rank - main) % size


def meeting_point(environ: Mapping[str, str]) -> Store:
    """The store that torchrun offers to all processes. Raises MachineError."""
    try:
        # As if it were for one: else the process that has the store waits here for all others, and could name none.
        store: Store = next(rendezvous("env://", world_size=1, timeout=timedelta(seconds=MEETING_SECONDS)))[0]
    except torch.distributed.DistError as error:
        raise MachineError(
            f"the meeting point {environ['MASTER_ADDR']}:{environ['MASTER_PORT']} does not answer "
            f"({first_line(error)}): its machine or its torchrun has ended, or a firewall is between; start again. "
            f"{OPEN_PORTS}"
        ) from error
    return store


def is_head(environ: Mapping[str, str]) -> bool:
    """Whether this process is the first one of the machine that owns the run."""
    first_machine = environ.get("GROUP_RANK", "0") == "0"
    return environ.get("LOCAL_RANK", "0") == "0" and (environ.get(IS_HEAD) or str(int(first_machine))) == "1"


def own_machine() -> str:
    """The address of this machine, or its name."""
    return os.environ.get("TRAINER_ADDRESS") or os.environ.get("TRAINER_NODE") or socket.gethostname()


def first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


@dataclass
class Meeting:
    """What one process says to the others in the store, and hears of them. Numbers are torchrun's ranks."""

    store: Store
    rank: int
    size: int
    place: str  # host:port of the store
    tell_last: Callable[[str], object]
    machines: dict[int, str] = field(default_factory=dict)  # of those who came

    def main_of(self, head: bool) -> int:
        """The number of the main process, which each process tells of itself.

        torchrun numbers the machines by their addresses. Whoever owns the run is to be rank 0, and the others follow in
        torchrun's order, so that no bit depends on which machine it is. Raises MachineError.
        """
        said = self.answers("heads", json.dumps([head, own_machine()]), time.monotonic() + MEETING_SECONDS)
        seats = {number: json.loads(answer) for number, answer in said.items()}
        self.machines = {number: machine for number, (_, machine) in seats.items()}
        if absent := [str(number) for number in range(self.size) if number not in seats]:
            raise MachineError(
                f"{len(absent)} of {self.size} processes did not come within {MEETING_SECONDS:.3g} s (numbers "
                f"{', '.join(absent)}); there were {self.tell(seats)}: see why in the output of the other machines, "
                f"and start again. {OPEN_PORTS}"
            )
        heads = [number for number, (is_main, _) in seats.items() if is_main]
        if len(heads) != 1:
            raise MachineError(
                f"{len(heads)} of the {self.size} processes that met say that their machine owns the run (numbers "
                f"{', '.join(map(str, heads)) or '-'}): one must; the run has another owner by now, or two runs use "
                "one rendezvous; start again, each run with a port of its own"
            )
        return heads[0]

    def connect(self, backend: str, main: int) -> None:
        """Make the process group: each process connects with each. Raises MachineError on all where one cannot."""
        reason, until = "", time.monotonic() + 1.2 * CONNECTING_SECONDS
        self.store.set_timeout(timedelta(seconds=CONNECTING_SECONDS))
        with self.at_most(CONNECTING_SECONDS + NO_ANSWER_SECONDS):
            try:
                torch.distributed.init_process_group(
                    backend, store=self.store, rank=(self.rank - main) % self.size, world_size=self.size,
                    timeout=timedelta(seconds=CONNECTING_SECONDS / 5),  # gloo waits five times as long (tcp/pair.cc)
                )  # fmt: skip
            except RuntimeError as error:
                reason = first_line(error).rpartition("] ")[2] or type(error).__name__
        found = self.answers("connected", reason, until)
        if silent := [number for number in range(self.size) if number not in found]:
            raise MachineError(
                f"processes came to the meeting and were lost before all had met: {self.tell(silent)}; see why in the "
                "output of their machines, and start again"
            )
        if failed := [number for number, why in found.items() if why]:
            raise MachineError(
                f"processes reached the meeting point {self.place}, but not all the others, within "
                f"{CONNECTING_SECONDS:.3g} s: {self.tell(failed)} ({found[failed[0]]}). A firewall is between them, or "
                f"GLOO_SOCKET_IFNAME names another network. {OPEN_PORTS}: open them, and start again"
            )
        self.store.set_timeout(PATIENCE)
        with warnings.catch_warnings():  # its successor, set_timeout, is only in later versions of torch
            warnings.simplefilter("ignore", FutureWarning)
            _set_pg_timeout(PATIENCE)

    def answers(self, topic: str, answer: str, until: float) -> dict[int, str]:
        """What each process says on a topic, by number; without those who say nothing `until` this time.

        The first one that gives up tells the others, and stays for a moment, since the store may be in its process.
        """
        store, names = PrefixStore(topic, self.store), [str(number) for number in range(self.size)]
        has_answered = all_here = over = False
        while not all_here and not over:
            time.sleep(ROLL_CALL_SECONDS if has_answered else 0)
            with self.at_most(NO_ANSWER_SECONDS):
                over = store.check(["over"])  # then this one comes too late, and is absent as the others see it
                if not has_answered and not over:
                    store.set(str(self.rank), answer)
                    has_answered = True
                all_here = store.check(names)
                if not all_here and time.monotonic() > until:
                    store.set("over", "")
                    over = True
        with self.at_most(NO_ANSWER_SECONDS):
            here = [name for name in names if store.check([name])]
            said = store.multi_get(here) if here else []
        if over:
            time.sleep(5 * ROLL_CALL_SECONDS)
        return {int(name): word.decode() for name, word in zip(here, said, strict=True)}

    def tell(self, numbers: Collection[int]) -> str:
        """Those processes, each with its machine."""
        machines: dict[str, list[str]] = {}
        for number in numbers:
            machines.setdefault(self.machines.get(number, "?"), []).append(str(number))
        return ", ".join(f"{' and '.join(who)} on {machine}" for machine, who in machines.items())

    @contextmanager
    def at_most(self, seconds: float) -> Iterator[None]:
        """End this process where torch does not come back from a call to the store."""
        timer = threading.Timer(seconds, self.leave, [seconds])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def leave(self, seconds: float) -> None:
        self.tell_last(
            f"the meeting point {self.place} has not answered for {seconds:.3g} s: its machine is lost, or this one is "
            "cut off; start again where the network works"
        )
        os._exit(CRASH)
