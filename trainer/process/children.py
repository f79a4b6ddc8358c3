"""The processes of an attempt as the supervisor sees them: the uploader, and the trainer with its workers.

Standard library only. This module decides how many processes there are, what they are told, and how they are ended.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trainer.contract import CRASH, UserError
from trainer.process.channel import Message, may_be_read
from trainer.text import say

PROCESSES = "PET_NPROC_PER_NODE"  # torchrun's variable; NPROC= of make
GPU_COUNT = "TRAINER_GPUS"  # tells the trainer how many GPUs there are, so that it notices when torch cannot use one
OBSERVER_SECONDS = 5.0  # from the end of the trainer to that of the observer
END_LETTERS = 500  # of a reason to end, for the observer: the message fits into any pipe, so nobody waits
KILL_SECONDS = 75  # from a signal to the SIGKILL of a trainer, or of an uploader that is still starting


def gpu_count() -> int:
    """How many GPUs the trainer will see; 0 without a driver. nvidia-smi tells: importing torch takes seconds."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    if shutil.which("nvidia-smi") is None:
        return 0
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines())


class UploaderProcess:
    """The uploader as the supervisor sees it: requests go to its standard input, answers come from its output."""

    def __init__(self, environ: dict[str, str], since_signal: Callable[[], float] = lambda: -math.inf):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "trainer.upload.uploader"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ, start_new_session=True,
        )  # fmt: skip
        while not self.has_answered():
            if since_signal() > KILL_SECONDS:  # it still waits for the store, so there is nothing to save
                self.process.kill()
        answer = self.answer()
        self.state: str = answer.get("state", "failed")
        self.attempt: int = answer.get("attempt", 0)
        self.first: Message = answer.get("first", {})
        self.socket: str = answer.get("socket", "")

    def ask(self, **request: Any) -> None:
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # finish() returns its exit code
                self.process.stdin.write(json.dumps(request) + "\n")
                self.process.stdin.flush()

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
                return self.answer()
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

    def __init__(self, arguments: Sequence[str], environ: dict[str, str], local: Path):
        self.local = local
        self.is_alone = environ[PROCESSES] == "1" and environ.get("PET_NNODES", "1") == "1"
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

    def wait(self, since_signal: Callable[[], float]) -> None:
        """Wait for its end, and force it KILL_SECONDS after a signal. No worker is left running."""
        while self.process.poll() is None:
            if since_signal() > KILL_SECONDS:
                say(f"the trainer has not ended {KILL_SECONDS} s after the signal: killing it")
                self.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=1)
        self.send(signal.SIGKILL)  # a worker that outlives torchrun would train on, unseen


def torch_environ(recipe: dict[str, Any]) -> dict[str, str]:
    """Default variables for torchrun and torch. The user's own variables win.

    torchrun would give each process one OpenMP thread; on a CPU these defaults share out the cores instead.
    OpenMP threads spin while they wait, which starves the decoding threads. Measured with 2 busy neighbours on 2 cores:
    a ResNet-18 step takes 3 to 9 times as long with 300,000 spins, but not with 2,000, which cost an idle machine 1 %.
    """
    gpus = 0 if recipe["device"] == "cpu" else gpu_count()
    batches = recipe["global_batch_size"], recipe["device_batch_size"]
    if asked := os.environ.get(PROCESSES):
        processes = check_processes(asked, gpus, len(os.sched_getaffinity(0)), *batches)
    else:
        processes = process_count(gpus, *batches, int(os.environ.get("TRAINER_NODES") or 1))
    return {
        GPU_COUNT: str(gpus),
        "PET_STANDALONE": "1",
        PROCESSES: str(processes),
        "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // processes)),
        "GOMP_SPINCOUNT": "2000",
    }


def check_processes(asked: str, gpus: int, cores: int, global_batch_size: int, device_batch_size: int) -> int:
    """The number of processes that was asked for (NPROC=). Raises UserError where this machine or the batch has fewer
    places.
    """
    micro_batches = max(1, global_batch_size // device_batch_size)
    most, what = (gpus, "GPUs") if gpus else (cores, "cores")
    if not re.fullmatch("[1-9][0-9]{0,3}", asked):
        raise UserError(
            f"NPROC={asked} is no number of processes: write one from 1 to {most}, or leave it out for one process on "
            "each GPU"
        )
    if (count := int(asked)) > most:
        raise UserError(f"NPROC={count}: this machine has {most} {what}, and each process needs one: NPROC={most}")
    if count > micro_batches:
        raise UserError(
            f"NPROC={count}: a step has {micro_batches} micro-batches (--global-batch-size {global_batch_size} / "
            f"--device-batch-size {device_batch_size}), and each process computes one at least: NPROC={micro_batches}, "
            "or a smaller --device-batch-size"
        )
    return count


def process_count(gpus: int, global_batch_size: int, device_batch_size: int, nodes: int = 1) -> int:
    """How many processes each of `nodes` machines starts: one for each GPU, and 1 without any.

    Where micro-batches do not divide among all GPUs, the fewest processes that need as little time: the one with the
    most micro-batches decides. A message says so.
    """
    micro_batches = max(1, global_batch_size // device_batch_size)
    counts = range(1, max(1, min(gpus, micro_batches // nodes)) + 1)
    count = min(counts, key=lambda n: (math.ceil(micro_batches / (n * nodes)), n))
    if count < gpus:
        fits = [n for n in range(1, device_batch_size + 1) if global_batch_size % (n * gpus * nodes) == 0]
        say(
            f"using {count} of {gpus} GPUs: with the {micro_batches} micro-batches of a step (--global-batch-size "
            f"{global_batch_size} / --device-batch-size {device_batch_size}) more would not be faster"
            + (f"; --device-batch-size {fits[-1]} uses all" if fits else "")
        )
    return count
