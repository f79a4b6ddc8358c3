"""The lookout of each process of a run: it says every two seconds that it lives, and leaves when another one does not.

A collective knows no partner by name and waits for as long as the group's timeout, which is a day: one process may
prepare data for hours while the others wait. Minutes would end such a run, and hours help nobody. So the timeout
decides nothing, and the lookout does: 20 s without a beat is a lost process, and 8 minutes in which no process gets on
is one that hangs. NCCL's own watchdog has the group's timeout, too; its monitor (480 s by default,
TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC) ends a process only where the watchdog itself hangs.

A beat of one of 4 processes costs 0.18 ms of a processor, its store's share included: 0.01 % of the time, measured on
2 shared cores.

The one that hangs is the one that has begun the fewest collectives: the others wait for it in the next one.
"""

from __future__ import annotations

import faulthandler
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed
from torch.distributed.distributed_c10d import PrefixStore, Store

from trainer.contract import CRASH, Phase
from trainer.learning.meeting import own_machine
from trainer.learning.verdicts import Judge, Judgement, LastWord, Pace
from trainer.learning.world import World
from trainer.process.channel import leave_exit
from trainer.process.interruption import Interrupted
from trainer.text import say

DUMP_SECONDS = 10.0  # after which a process leaves, even if a driver does not let it write what it knows


class LostPartnerError(Exception):
    """Another process is gone, so this one cannot go on: the message says which. Exit code 1, as a crash."""


class Moving(Protocol):
    """What the work says of itself: `telemetry.status.Status`."""

    phase: str
    step: int
    progress: int

    def tick(self, amount: int = 1) -> None: ...


class Lookout:
    """Two threads: one talks to the store and may be held up there, the other one judges."""

    def __init__(self, store: Store, world: World, status: Moving, local: Path, pace: Pace):
        self.base, self.world, self.status, self.local, self.pace = store, world, status, local, pace
        self.store: Store | None = None
        self.machine = own_machine()
        self.judge = Judge(rank=world.rank, size=world.size, place=_meeting_place(store), pace=pace)
        self.batches = self.beats = 0
        self.last: dict[str, Any] = {}  # what the last beats say beyond the usual
        self.all_began = False
        self.ends, self.hurry, self.judging = threading.Event(), threading.Event(), threading.Lock()
        self.beater = threading.Thread(target=self._beat_forever, daemon=True, name="lookout-beats")
        self.watcher = threading.Thread(target=self._judge_forever, daemon=True, name="lookout-judges")

    def start(self) -> None:
        self.judge.hear({})
        self.beater.start()
        self.watcher.start()

    def word(self) -> LastWord:
        self.beats += 1
        return LastWord(
            rank=self.world.rank, machine=self.machine, phase=self.status.phase, step=self.status.step,
            progress=self.status.progress, batches=self.batches, collectives=_collectives(), beat=self.beats,
            **self.last,
        )  # fmt: skip

    def _beat_forever(self) -> None:
        while True:
            is_last = self.ends.is_set()
            try:
                self._beat()
            except Exception:  # noqa: BLE001  # whatever it is: the judge sees how long nothing was heard
                self.store = None
            if is_last:
                return
            self.hurry.wait(self.pace.beat)
            self.hurry.clear()

    def _beat(self) -> None:
        if self.store is None:  # to connect with a machine that is gone takes as long as a collective may
            self.store = _own(self.base)
        self.store.set(str(self.world.rank), self.word().to_json().decode())
        names = [str(rank) for rank in range(self.world.size)]
        self.all_began = self.all_began or self.store.check(names)
        if not self.all_began:  # to ask for one that is not there would wait for it
            names = [name for name in names if self.store.check([name])]
        bodies = self.store.multi_get(names)
        self.judge.hear({int(name): LastWord.from_json(body) for name, body in zip(names, bodies, strict=True)})

    def _judge_forever(self) -> None:
        while not self.ends.wait(self.pace.beat / 4):
            # The guard sees the main process alone, which may wait for one that stages its data.
            if self.world.is_main and self.judge.others_moved(10 * self.pace.beat):
                self.status.tick()
            # Whoever saves for the last time needs no other process, and the store may leave with the first of them.
            if self.status.phase != Phase.SAVING and (found := self.judge.verdict()) is not None:
                with self.judging:
                    if not self.ends.is_set():
                        self.leave(found)

    def leave(self, found: Judgement) -> None:
        """End this process for this reason, whatever its main thread does. The others get a moment to hear why."""
        last = threading.Timer(DUMP_SECONDS + self.pace.beat, self._exit, [found.message])
        last.daemon = True
        last.start()
        self.last = {"verdict": found.message, "is_hang": found.is_hang}
        self.hurry.set()
        if found.is_hang:
            self.dump(found.message)
        self.ends.wait(1.5 * self.pace.beat)
        self._exit(found.message)

    def _exit(self, message: str) -> None:
        with suppress(OSError):
            leave_exit(self.local, CRASH, message, lost_partner=True)
        os._exit(CRASH)

    def dump(self, message: str) -> None:
        """Where each thread is, and the last collectives (torch's flight recorder), as files of the attempt.

        The uploader stores them at the attempt's end: trainer/upload/hangs.py.
        """
        try:
            with (self.local / f"hang.{self.world.rank}.txt").open("w") as file:
                file.write(f"{message}\n\n{self.word()}\n\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
            recorder: Any = torch._C._distributed_c10d
            is_gpu = self.world.device.type == "cuda"
            trace = recorder._dump_nccl_trace() if is_gpu else recorder._dump_fr_trace()
            (self.local / f"hang.{self.world.rank}.pkl").write_bytes(trace)
        except (OSError, RuntimeError, AttributeError) as error:  # a full disk, or another torch
            say(f"rank {self.world.rank} hangs, and cannot write where: {error}")

    def close(self, reason: str = "", verdict: str = "") -> None:
        """Say goodbye: the others judge this process no more. `reason`: the error that ended it."""
        with self.judging:
            self.last = {"is_over": True, "reason": reason, "verdict": verdict}
            self.ends.set()
        self.hurry.set()
        self.beater.join(self.pace.beat)

    def who_is_gone(self) -> str:
        """Which process a lost connection belonged to, as far as that shows within `pace.naming` seconds."""
        waited, part = 0.0, self.pace.naming / 25
        while waited < self.pace.naming and not self.judge.has_heard_why():
            self.ends.wait(part)
            waited += part
        return "; ".join(self.judge.missing(0.9 * self.pace.naming)) or "all of them still beat: see their output"

    def counted(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The micro-batches; a step of many shows by them that it gets on."""
        for batch in batches:
            self.batches += 1
            yield batch


@contextmanager
def looking_out(
    world: World, status: Moving, local: Path, pace: Pace | None = None
) -> Iterator[Callable[[Iterable[Any]], Iterator[Any]]]:
    """Inside, the processes of a run look after each other. Yields what counts micro-batches: see Lookout.counted.

    Raises LostPartnerError in place of an error that only says that a connection is gone. With one process it does
    nothing.
    """
    if world.size == 1:
        yield iter
        return
    lookout = Lookout(torch.distributed.distributed_c10d._get_default_store(), world, status, local, pace or Pace())
    lookout.start()
    try:
        yield lookout.counted
    except Interrupted:
        lookout.close()
        raise
    except Exception as error:
        if (lost := lost_connection(error)) and not isinstance(error, LostPartnerError):
            message = f"the connection to another process was lost ({lost}): {lookout.who_is_gone()}"
            lookout.close(verdict=message)
            raise LostPartnerError(message) from error
        lookout.close(reason=f"{type(error).__name__}: {error}".partition("\n")[0])
        raise
    except BaseException as error:
        lookout.close(reason=type(error).__name__)
        raise
    lookout.close()


def lost_connection(error: BaseException) -> str:
    """What torch says of a connection that is gone, in a few words; "" for every other error.

    gloo raises RuntimeError with the place in its source. NCCL's codes for others' faults are ncclRemoteError and
    ncclSystemError; its other errors are faults of this process.
    """
    said = str(error).strip().partition("\n")[0]
    if isinstance(error, torch.distributed.DistBackendError):
        code = next((code for code in ("ncclRemoteError", "ncclSystemError") if code in str(error)), "")
        return f"{code}: {said}" if code else ""
    if isinstance(error, torch.distributed.DistError):
        return said
    if isinstance(error, RuntimeError) and "/gloo/" in said:
        return said.partition("] ")[2].partition(". ")[0]
    return ""


def _own(store: Store) -> Store:
    """A connection of its own to the same store: a call that waits would hold up all others on one connection."""
    return PrefixStore("lookout", store.clone())


def _meeting_place(store: Store) -> str:
    """host:port of a TCPStore."""
    while isinstance(store, PrefixStore):
        store = store.underlying_store
    return f"{getattr(store, 'host', '?')}:{getattr(store, 'port', '?')}"


def _collectives() -> int:
    """How many this process has begun, in all backends."""
    group = torch.distributed.group.WORLD
    if group is None:
        return 0
    backends: dict[int, Any] = {id(found): found for found in map(group._get_backend, group._device_types)}
    begun = 0
    for backend in backends.values():
        with suppress(RuntimeError):  # one that does not count says nothing of who is behind
            begun += backend._get_sequence_number_for_group()
    return begun
