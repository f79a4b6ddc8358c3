"""The processes of an attempt as the supervisor sees them: the uploader, and the trainer with its workers.

Standard library only. How many of them there are is decided in `counts`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trainer.contract import CRASH, Exit
from trainer.process.channel import Message, leave_exit, may_be_read
from trainer.process.counts import PROCESSES
from trainer.process.nodes import CURRENT, LEFT, MEETING
from trainer.text import say

REASON_SECONDS = 50  # for a worker's last save, after another one of this machine has left a reason to end
OBSERVER_SECONDS = 5.0  # from the end of the trainer to that of the observer
END_LETTERS = 500  # of a reason to end, for the observer: the message fits into any pipe, so nobody waits
SURPLUS_SECONDS = 600.0  # until a machine gives up that the others have no place for
KILL_SECONDS = 75  # from a signal to the SIGKILL of a trainer, or of an uploader that is still starting


class UploaderProcess:
    """The uploader as the supervisor sees it: requests go to its standard input, answers come from its output."""

    def __init__(self, environ: dict[str, str], since_signal: Callable[[], float] = lambda: -math.inf):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "trainer.upload.uploader"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ, start_new_session=True,
        )  # fmt: skip
        patience = 2 if environ.get(MEETING) is not None else KILL_SECONDS  # of several machines it may wait for long
        while not self.has_answered():
            if since_signal() > patience:  # it still waits for the store, so there is nothing to save
                self.process.kill()
        answer = self.answer()
        self.state: str = answer.get("state", "failed")
        self.attempt: int = answer.get("attempt", 0)
        self.first: Message = answer.get("first", {})
        self.socket: str = answer.get("socket", "")
        self.rendezvous: str = answer.get("rendezvous", "")  # where the machines of this attempt meet
        self.newest: str = answer.get("newest", "")  # checkpoint
        self.head_has_data: bool = answer.get("head_has_data", False)  # told to a member
        self.since: float = answer.get("since", 0.0)  # when this attempt got the run

    def ask(self, **request: Any) -> None:
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # finish() returns its exit code
                self.process.stdin.write(json.dumps(request) + "\n")
                self.process.stdin.flush()

    def look(self) -> str:
        """How it stands with the attempt that a member is to join: CURRENT, OVER or LEFT."""
        self.ask(op="look")
        return str(self.answer().get("attempt", LEFT))

    def has_answered(self) -> bool:
        """Wait a moment for an answer, or for the end of the process."""
        return self.process.stdout is None or may_be_read(self.process.stdout.fileno(), 0.5)

    def answer(self) -> Message:
        """The next line that it prints; {} when it has ended."""
        line = self.process.stdout.readline() if self.process.stdout is not None else ""
        answer: Message = json.loads(line) if line else {}
        return answer

    def flush(self, until: Callable[[], float]) -> Message:
        """Wait until everything handed over so far is in the store, or until a deadline.

        `until` returns the deadline in time.monotonic() and is asked again and again, since it may come nearer.
        The answer has `drained` (whether everything is stored) and `kept` (the folder of a local copy, or "").
        It is {} if the uploader does not answer.
        """
        told = math.inf
        while True:
            if until() < told:
                told = until()
                self.ask(op="flush", seconds=max(0.0, told - time.monotonic()))
            if self.has_answered():
                answer = self.answer()
                self.newest = answer.get("newest", self.newest)
                return answer
            if time.monotonic() > told + 10:
                return {}

    def finish(self, seconds: float) -> int:
        """Close its input, wait, and return its exit code: 0 if everything that it was given is in the store."""
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        try:
            return self.process.wait(timeout=seconds + 10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return CRASH


class ObserverProcess:
    """The observer as the supervisor sees it. It may die or hang at any time, and the run goes on and ends without it.

    It has a session of its own, so that it can be ended together with the report that it may be making.
    """

    def __init__(self, environ: dict[str, str], uploader: UploaderProcess):
        self.process: subprocess.Popen[bytes] | None = None
        self.told = math.inf  # when it was told to end
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "trainer.observer", str(uploader.process.pid)],
                stdin=subprocess.PIPE, env=environ, start_new_session=True, bufsize=0,
            )  # fmt: skip
        except OSError as error:
            say(f"nothing is measured in this attempt: the observer cannot be started ({error}); training goes on")
        else:
            self.reaper = threading.Thread(target=self._reap, args=[self.process], daemon=True, name="observer")
            self.reaper.start()

    def _reap(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for its end, so that it does not stay a zombie, and tell of one that nobody asked for."""
        code = process.wait()
        self._kill(process)  # a report that it left
        if self.told == math.inf:
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            say(f"the observer has died ({how}): training goes on, without samples and alerts from here on")

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)

    def tell_end(self, ended: Message) -> None:
        """Tell how the attempt `ended`: from now on it has OBSERVER_SECONDS to end. Never waits."""
        if self.process is None or self.process.stdin is None:
            return
        self.told = time.monotonic()
        short = ended | {"message": ended["message"][:END_LETTERS]}
        with contextlib.suppress(OSError):  # it has died
            self.process.stdin.write(json.dumps(short).encode() + b"\n")

    def finish(self) -> None:
        """Wait until it has ended, or end it. The wait has an end in any case.

        No signal ends a process in a driver's call that cannot be interrupted: it is left behind. In a container it is
        not: the kernel ends the container only after it, so there it holds up the end until the driver answers.
        """
        if self.process is None or self.process.stdin is None:
            return
        self.reaper.join(max(0.1, self.told + OBSERVER_SECONDS - time.monotonic()))
        if self.reaper.is_alive():
            say(f"the observer has not ended in {OBSERVER_SECONDS:.0f} s: killing it")
            self._kill(self.process)
        with contextlib.suppress(OSError):
            self.process.stdin.close()


class TrainerProcess:
    """The trainer's worker processes. They have sessions of their own, so that only the supervisor gets a Ctrl-C.

    A single worker is started directly. Several need torchrun, which imports torch: two seconds for every start.
    Signals go to the workers, since torchrun would kill them 30 s after a SIGTERM. torchrun's own exit code is 1
    in any case, so a worker leaves its code in `exit.json`.
    """

    is_ended = False  # by this machine, since the attempt was over
    told = math.inf  # when a reason to end was first seen, in time.monotonic()

    def __init__(self, arguments: Sequence[str], environ: dict[str, str], local: Path):
        self.local = local
        self.has_others = environ.get("PET_NNODES", "1") != "1"  # on other machines
        self.is_alone = environ[PROCESSES] == "1" and not self.has_others
        command = [sys.executable, "-m", "trainer.train", *arguments]
        if self.is_alone:  # a cluster may have set others for its own torchrun
            environ = environ | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
        else:
            command[1:1] = ["-m", "torch.distributed.run"]
        self.process = subprocess.Popen(command, env=environ, start_new_session=True)

    def workers(self) -> list[int]:
        """The workers that have registered, which is the first thing that they do, and may still run."""
        ended = self.process.pid if self.process.returncode is not None else 0
        return [pid for path in (self.local / "pids").iterdir() if (pid := int(path.name)) != ended]

    def send(self, number: int) -> bool:
        """Send a signal to the workers; False if there is none yet."""
        workers = self.workers()
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return bool(workers)

    def interrupt(self) -> None:
        """Ask the workers to save and end. If there is none yet, end the process at once."""
        if not self.send(signal.SIGTERM):
            self.kill()

    def save(self) -> bool:
        """Ask the workers to save and go on; False if there is none yet."""
        return self.send(signal.SIGUSR1)

    def kill(self) -> None:
        """End the process, its children and every worker at once."""
        children: list[int] = []
        with contextlib.suppress(OSError):  # it has ended, or this kernel has no such file
            self.process.send_signal(signal.SIGSTOP)  # it starts no further child
            listing = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
            children = [int(pid) for pid in listing.split()]
        self.process.kill()
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.send(signal.SIGKILL)

    def is_over(self) -> bool:
        """Whether a worker has left a reason to end, and all have ended or had the time to.

        torchrun would wait for the other machines, up to five minutes. But they ask this one's torchrun until they end.
        """
        if not (self.local / "exit.json").exists():
            return False
        self.told = min(self.told, time.monotonic())
        seconds = time.monotonic() - self.told  # the file's own time is by a clock that somebody may set
        return seconds > REASON_SECONDS or (seconds > 2 and not any(map(is_alive, self.workers())))

    def wait(self, since_signal: Callable[[], float]) -> None:
        """Wait for its end, and force it KILL_SECONDS after a signal. No worker is left running."""
        while self.process.poll() is None:
            if self.has_others and self.is_over():
                self.is_ended = True
                self.kill()
            if since_signal() > KILL_SECONDS:
                say(f"the trainer has not ended {KILL_SECONDS} s after the signal: killing it")
                self.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=1)
        self.send(signal.SIGKILL)  # a worker that outlives torchrun would train on, unseen


class MemberProcess(TrainerProcess):
    """The trainer of a machine that joins. It is over where the attempt ends before a worker of this machine has begun.

    torchrun would wait for the machine that led: once a call to a store has had no answer for 60 s, the next one waits
    until the kernel gives the connection up, a quarter of an hour later (torch 2.15).
    """

    def __init__(self, arguments: Sequence[str], environ: dict[str, str], local: Path, *, uploader: UploaderProcess):
        super().__init__(arguments, environ, local)
        self.uploader, self.began, self.most = uploader, time.monotonic(), environ["PET_NNODES"].partition(":")[2]

    def is_over(self) -> bool:
        if super().is_over() or self.workers():
            return super().is_over()
        if time.monotonic() > self.began + SURPLUS_SECONDS:  # torchrun would wait until another machine leaves
            leave_exit(
                self.local, Exit.HELD, f"the run has its NODES={self.most} machines, and none has left within "
                f"{SURPLUS_SECONDS:.0f} s: this one is not needed; a run that begins with more NODES= takes it",
            )  # fmt: skip
            return True
        return self.uploader.look() != CURRENT


class StagingProcess(TrainerProcess):
    """`trainer.staging` on a machine that joins. It is over where nobody leads the run any more: then it may lead."""

    has_others, is_alone = True, True

    def __init__(self, arguments: Sequence[str], environ: dict[str, str], local: Path, *, uploader: UploaderProcess):
        self.local, self.uploader = local, uploader
        command = [sys.executable, "-m", "trainer.staging", *arguments]
        self.process = subprocess.Popen(command, env=environ, start_new_session=True)

    def is_over(self) -> bool:
        return self.uploader.look() == LEFT


def is_alive(pid: int) -> bool:
    """Whether a process has not ended; a zombie has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False
