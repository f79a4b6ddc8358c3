"""The entry, on a laptop and as PID 1 of the container: starts the uploader, then the trainer; gives the exit code.

Standard library only, and nothing that can block on the store: whatever needs the store goes through the uploader,
which lives in a session of its own, so that it can finish a checkpoint after the trainer died.

    python -m trainer.supervise digits --epochs 4      (options: python -m trainer.train digits --help)
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from trainer.channel import SOCKET_VARIABLE, read_json, run_dir
from trainer.contract import Exit, RunEnv, UserError, attempt_key, run_key

HELP = """
environment: where the run lives (the options above say what it computes)
  TRAINER_STORE         s3://bucket/prefix or a folder for all results    (out)
  TRAINER_RUN_ID        name of the run; the same name continues it       (the recipe's name)
  TRAINER_DATA          hub id, parquet or image folder, prepared shards  (the recipe's own)
  TRAINER_SCRATCH_DIR   local folder for prepared data, may be lost       (.scratch)
  TRAINER_SECRETS_DIR   folder with the file hf_token, for gated data     (none: HF_TOKEN)

exit codes: 0 finished, 75 interrupted and saved, 76 another trainer has the run, 78 you must change something
"""
DRAIN_SECONDS = 90  # what the uploader gets after the trainer's end
CRASH = 1


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def run_env(recipe: str) -> RunEnv:
    """The environment, with a laptop's defaults: store `out`, scratch `.scratch`, the recipe's name as the run."""
    defaults = {"TRAINER_STORE": "out", "TRAINER_RUN_ID": recipe, "TRAINER_SCRATCH_DIR": ".scratch"}
    return RunEnv.from_environ(defaults | {name: value for name, value in os.environ.items() if value})


def gpu_count() -> int:
    """GPUs that the trainer will see; 0 without a driver. Asked of nvidia-smi, since importing torch takes seconds."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    if shutil.which("nvidia-smi") is None:
        return 0
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines())


class Uploader:
    """The uploader process, seen from here: requests on its standard input, answers on its standard output."""

    def __init__(self, environ: dict[str, str]):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "trainer.uploader"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ, start_new_session=True,
        )  # fmt: skip
        answer = self.answer()
        self.state: str = answer.get("state", "failed")
        self.attempt: int = answer.get("attempt", 0)
        self.socket: str = answer.get("socket", "")
        self.drained = True  # until an answer says otherwise

    def ask(self, **request: Any) -> None:
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # its exit code tells, in finish()
                self.process.stdin.write(json.dumps(request) + "\n")
                self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """The next line that it prints; {} when it is gone."""
        line = self.process.stdout.readline() if self.process.stdout is not None else ""
        answer: dict[str, Any] = json.loads(line) if line else {}
        return answer

    def flush(self) -> bool:
        """Wait until all that was handed over so far is in the store, DRAIN_SECONDS at most."""
        self.ask(op="flush", seconds=DRAIN_SECONDS)
        self.drained = bool(self.answer().get("drained"))
        return self.drained

    def finish(self) -> int:
        """Close, wait, and return its exit code: 0 when all that it was given is in the store."""
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        try:
            return self.process.wait(timeout=DRAIN_SECONDS + 5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return CRASH


class Trainer:
    """torchrun and its workers, in a session of their own so that a terminal's Ctrl-C reaches the supervisor alone.

    Signals go to the workers, not to torchrun, which would kill them 30 s after a SIGTERM. torchrun's exit code is 1
    whatever happened; the worker's own travels in `exit.json`.
    """

    def __init__(self, arguments: Sequence[str], environ: dict[str, str], local: Path):
        self.local = local
        torchrun = [sys.executable, "-m", "torch.distributed.run", "-m"]
        self.process = subprocess.Popen(
            [*torchrun, "trainer.train", *arguments],
            env=torch_environ() | environ,
            start_new_session=True,
        )

    def workers(self) -> list[int]:
        return [int(path.name) for path in (self.local / "pids").glob("*")]

    def interrupt(self, number: int) -> None:
        """Pass a signal on. Before a worker has said that it can take one there is nothing to save: end at once."""
        workers = self.workers()
        if not workers:
            self.kill()
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        for pid in [self.process.pid, *self.workers()]:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def torch_environ() -> dict[str, str]:
    """Defaults for torchrun and torch; the user's own variables win.

    torchrun would give each process one OpenMP thread: on a CPU the cores are shared out instead. Waiting OpenMP
    threads spin, which starves the decoding threads: with 2 busy neighbours on 2 cores a ResNet-18 step takes 3 to 9
    times as long; after 2,000 spins instead of 300,000 it does not, and an idle machine loses 1 % (measured).
    """
    processes = int(os.environ.get("PET_NPROC_PER_NODE") or max(1, gpu_count()))
    return {
        "PET_STANDALONE": "1",
        "PET_NPROC_PER_NODE": str(processes),
        "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // processes)),
        "GOMP_SPINCOUNT": "2000",
    }


class Signals:
    """SIGTERM and SIGINT: the first is passed on, a second SIGINT ends everything at once."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self.trainer: Trainer | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.handle)

    def handle(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)
        if self.trainer is None:
            return
        if self.received.count(signal.SIGINT) > 1:
            say("second Ctrl-C: leaving at once, without a last save")
            self.trainer.kill()
        elif len(self.received) == 1:
            say("stopping: finishing the step and saving it (Ctrl-C again: leave at once)")
            self.trainer.interrupt(signal.SIGTERM)


def train(arguments: Sequence[str], environ: dict[str, str], local: Path, signals: Signals) -> tuple[int, str]:
    """Run the trainer to its end: its exit code (CRASH when it left none) and its message."""
    shutil.rmtree(local / "pids", ignore_errors=True)
    (local / "pids").mkdir(parents=True)
    for name in ("exit.json", "status.json"):
        (local / name).unlink(missing_ok=True)
    trainer = signals.trainer = Trainer(arguments, environ, local)
    if signals.received:
        trainer.kill()
    trainer.process.wait()
    signals.trainer = None
    ended = read_json(local / "exit.json")
    if ended is not None and ended["code"] == Exit.INTERRUPTED and not signals.received:
        return CRASH, "a process of the trainer died, and torchrun stopped the others: see their output above"
    if ended is not None:
        return int(ended["code"]), str(ended["message"])
    if signals.received and not trainer.workers():
        return Exit.INTERRUPTED, "interrupted before training began"
    return CRASH, "the trainer died without a word: see its output above"


def report(environ: dict[str, str]) -> bool:
    """Draw the curves, store them and print the summary; a failure here does not undo a training."""
    return subprocess.run([sys.executable, "-m", "trainer.report"], env=environ, check=False).returncode == 0


def supervise(arguments: Sequence[str]) -> int:
    signals = Signals()
    check = subprocess.run(
        [sys.executable, "-m", "trainer.recipes", *arguments], stdout=subprocess.PIPE, text=True, check=False
    )
    if check.returncode or {"-h", "--help"} & set(arguments):
        print(check.stdout + (HELP if not check.returncode else ""), end="")
        return check.returncode
    env = run_env(check.stdout.strip())
    environ = os.environ | env.to_environ()
    local = run_dir(env.scratch_dir, env.run_id)
    try:
        local.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"TRAINER_SCRATCH_DIR={env.scratch_dir!r} cannot be written ({error}): name a local folder with room, "
            "for example SCRATCH=/tmp/resnet-spot"
        ) from error

    uploader = Uploader(environ)
    if uploader.state == "finished":
        uploader.finish()
        say(f"run {env.run_id!r} is finished already; `make train RUN=another-name` starts a new one. Its result:")
        return Exit.FINISHED if report(environ) else CRASH
    if uploader.state != "ready":
        return uploader.finish() or CRASH

    started = time.time()
    environ |= {"TRAINER_ATTEMPT": str(uploader.attempt), SOCKET_VARIABLE: uploader.socket}
    spec = {"recipe": check.stdout.strip(), "arguments": list(arguments), "data": env.data}
    uploader.ask(op="create", key=run_key(env.run_id, "spec.json"), body=spec)
    code, message = train(arguments, environ, local, signals)
    saved = uploader.flush()
    if code == Exit.FINISHED and saved:
        report(environ)
    ended = {"attempt": uploader.attempt, "exit": code, "message": message, "ended": time.time()}
    uploader.ask(op="put", key=attempt_key(env.run_id, uploader.attempt), body=ended | {"started": started})
    if (code == Exit.FINISHED and saved) or code == Exit.USER:
        name = "done.json" if code == Exit.FINISHED else "failed.json"
        uploader.ask(op="create", key=run_key(env.run_id, name), body=ended)
    if uploader.finish() and code in (Exit.FINISHED, Exit.INTERRUPTED):
        say(f"error: not everything reached the store {env.store}; what is missing is kept in {local}")
        return CRASH
    if code == Exit.INTERRUPTED:
        say(f"interrupted; {message}. The same command continues from there.")
    elif code:
        say(f"error: {message}")
    return code


def main() -> int:
    try:
        return supervise(sys.argv[1:])
    except UserError as error:
        say(f"error: {error}")
        return Exit.USER


if __name__ == "__main__":
    raise SystemExit(main())
