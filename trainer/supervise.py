"""The entry, on a laptop and as PID 1 of the container: starts the uploader, then the trainer; gives the exit code.

Standard library only, and nothing that can block on the store: whatever needs the store goes through the uploader,
which lives in a session of its own, so that it can finish a checkpoint after the trainer died.

    python -m trainer.supervise digits --epochs 4      (options: python -m trainer.train digits --help)
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from trainer.channel import SOCKET_VARIABLE, attempt_dir, read_json
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
DRAIN_SECONDS = 90  # what the uploader gets after the trainer's end, or after a signal
KILL_SECONDS = 75  # what a trainer gets after a signal
CRASH = 1


def say(message: str) -> None:
    with contextlib.suppress(OSError):  # the terminal was closed: the run is saved all the same
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

    def flush(self, seconds: float) -> bool:
        """Wait until all that was handed over so far is in the store, so many seconds at most."""
        self.ask(op="flush", seconds=seconds)
        ready = self.process.stdout is not None and select.select([self.process.stdout], [], [], seconds + 10)[0]
        return bool(ready and self.answer().get("drained"))

    def finish(self, seconds: float) -> int:
        """Close, wait, and return its exit code: 0 when all that it was given is in the store."""
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        try:
            return self.process.wait(timeout=seconds + 10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return CRASH


class Trainer:
    """torchrun and its workers, in sessions of their own so that a terminal's Ctrl-C reaches the supervisor alone.

    Signals go to the workers, not to torchrun, which would kill them 30 s after a SIGTERM. torchrun's exit code is 1
    whatever happened; the worker's own travels in `exit.json`.
    """

    def __init__(self, arguments: Sequence[str], environ: dict[str, str], local: Path):
        self.local = local
        torchrun = [sys.executable, "-m", "torch.distributed.run", "-m"]
        self.process = subprocess.Popen([*torchrun, "trainer.train", *arguments], env=environ, start_new_session=True)

    def workers(self) -> list[int]:
        """Those that have registered, which is the first thing that they do."""
        return [int(path.name) for path in (self.local / "pids").iterdir()]

    def interrupt(self) -> None:
        """Ask the workers to save and end; before there are any, end at once."""
        workers = self.workers()
        if not workers:
            self.kill()
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def kill(self) -> None:
        """End torchrun, its children, and every worker, at once."""
        children: list[int] = []
        with contextlib.suppress(OSError):  # it has ended, or this kernel does not tell
            self.process.send_signal(signal.SIGSTOP)  # no more of them
            listing = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
            children = [int(pid) for pid in listing.split()]
        self.process.kill()
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.kill_workers()

    def kill_workers(self) -> None:
        """Workers that outlive torchrun would train on unseen."""
        for pid in self.workers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def wait(self, signals: Signals) -> None:
        """Until torchrun has ended, and KILL_SECONDS after a signal at the latest; leaves no worker behind."""
        while self.process.poll() is None:
            if signals.seconds_since() > KILL_SECONDS:
                say(f"the trainer has not ended {KILL_SECONDS} s after the signal: killing it")
                self.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=1)
        self.kill_workers()


def torch_environ(recipe: dict[str, Any]) -> dict[str, str]:
    """Defaults for torchrun and torch; the user's own variables win.

    torchrun would give each process one OpenMP thread: on a CPU the cores are shared out instead. Waiting OpenMP
    threads spin, which starves the decoding threads: with 2 busy neighbours on 2 cores a ResNet-18 step takes 3 to 9
    times as long; after 2,000 spins instead of 300,000 it does not, and an idle machine loses 1 % (measured).
    """
    count = process_count(gpu_count(), recipe["global_batch_size"], recipe["device_batch_size"])
    processes = int(os.environ.get("PET_NPROC_PER_NODE") or count)
    return {
        "PET_STANDALONE": "1",
        "PET_NPROC_PER_NODE": str(processes),
        "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // processes)),
        "GOMP_SPINCOUNT": "2000",
    }


def process_count(gpus: int, global_batch_size: int, device_batch_size: int) -> int:
    """One process per GPU; fewer where the batch cannot be shared out among all, and then that is said."""
    fits = [n for n in range(1, gpus + 1) if global_batch_size % (device_batch_size * n) == 0]
    count = max(fits, default=1)
    if count < gpus:
        say(
            f"using {count} of {gpus} GPUs: the global batch of {global_batch_size} images cannot be shared out among "
            f"more at {device_batch_size} per device; --device-batch-size {max(1, global_batch_size // gpus)} might"
        )
    return count


class Signals:
    """SIGTERM, SIGINT and SIGHUP: the first is passed on, a second SIGINT ends everything at once."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self.first = float("inf")
        self.trainer: Trainer | None = None
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup means it
                signal.signal(number, self.handle)

    def seconds_since(self) -> float:
        """Since the first signal; negative before there was one."""
        return time.monotonic() - self.first

    def handle(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)
        if len(self.received) == 1:
            self.first = time.monotonic()
            if self.trainer is not None:
                say("stopping: finishing the step and saving it (Ctrl-C again: leave at once)")
                self.trainer.interrupt()
        elif self.received.count(signal.SIGINT) > 1:
            say("second Ctrl-C: leaving at once, without a last save")
            if self.trainer is None:
                raise KeyboardInterrupt
            self.trainer.kill()


def train(arguments: Sequence[str], environ: dict[str, str], local: Path, signals: Signals) -> dict[str, Any]:
    """Run the trainer to its end: `code` (CRASH where it left none), `message`, `run_failed`."""
    shutil.rmtree(local, ignore_errors=True)  # of a run of this name in a store that was removed since
    (local / "pids").mkdir(parents=True)
    trainer = signals.trainer = Trainer(arguments, environ, local)
    if signals.received:
        trainer.kill()
    trainer.wait(signals)
    signals.trainer = None
    ended = read_json(local / "exit.json")
    if ended is None and signals.received and read_json(local / "status.json") is None:
        return {"code": Exit.INTERRUPTED, "message": "nothing had begun"}
    if ended is None:
        return {"code": CRASH, "message": "the trainer died without a word: see its output above"}
    if ended["code"] == Exit.INTERRUPTED and not signals.received:
        return {"code": CRASH, "message": "a process of the trainer died, and torchrun stopped the others: see above"}
    return ended


def report(environ: dict[str, str]) -> bool:
    """Draw the curves, store them and print the summary; a failure here does not undo a training."""
    return subprocess.run([sys.executable, "-m", "trainer.report"], env=environ, check=False).returncode == 0


def supervise(arguments: Sequence[str]) -> int:
    signals = Signals()
    check = subprocess.run(
        [sys.executable, "-m", "trainer.recipes", *arguments], stdout=subprocess.PIPE, text=True, check=False,
        start_new_session=True,
    )  # fmt: skip
    if check.returncode or {"-h", "--help"} & set(arguments):
        print(check.stdout + (HELP if not check.returncode else ""), end="")
        return check.returncode
    recipe = json.loads(check.stdout)
    env = run_env(recipe["recipe"])
    compiled = {}  # where numba keeps machine code: beside the source, unless that is read-only, as in the container
    if not os.access(Path(__file__).parent / "data", os.W_OK):
        compiled["NUMBA_CACHE_DIR"] = str(Path(env.scratch_dir).absolute() / "numba")
    environ = compiled | torch_environ(recipe) | os.environ | env.to_environ()
    try:
        (folder := attempt_dir(env)).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(
            f"TRAINER_SCRATCH_DIR={env.scratch_dir!r} cannot be written ({error}): name a local folder with room, "
            "for example SCRATCH=/tmp/resnet-spot"
        ) from error

    uploader = Uploader(environ)
    if uploader.state == "finished":
        uploader.finish(DRAIN_SECONDS)
        say(f"run {env.run_id!r} is finished already; `make train RUN=another-name` starts a new one. Its result:")
        return Exit.FINISHED if report(environ) else CRASH
    if uploader.state != "ready":
        return uploader.finish(DRAIN_SECONDS) or CRASH

    started = time.time()
    env = replace(env, attempt=str(uploader.attempt))
    environ |= env.to_environ() | {SOCKET_VARIABLE: uploader.socket}
    spec = {"recipe": recipe["recipe"], "arguments": list(arguments), "data": env.data}
    uploader.ask(op="create", key=run_key(env.run_id, "spec.json"), body=spec)
    ended = train(arguments, environ, attempt_dir(env), signals)
    code, message = int(ended["code"]), ended["message"]

    waited = max(0.0, signals.seconds_since())  # all in all within the 100 s that `docker stop` gives
    seconds = max(5.0, (DRAIN_SECONDS - waited) / 2)
    saved = uploader.flush(seconds)
    if code == Exit.FINISHED and saved:
        report(environ)
    body = {"attempt": uploader.attempt, "exit": code, "message": message, "started": started, "ended": time.time()}
    uploader.ask(op="put", key=attempt_key(env.run_id, uploader.attempt), body=body)
    if code == Exit.FINISHED and saved:
        uploader.ask(op="create", key=run_key(env.run_id, "done.json"), body=body)
    if code == Exit.USER and ended["run_failed"]:
        uploader.ask(op="put", key=run_key(env.run_id, "failed.json"), body=body)
    if uploader.finish(seconds) and code in (Exit.FINISHED, Exit.INTERRUPTED):
        say(f"error: not everything reached {env.store}; the same command continues from the newest checkpoint there")
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
    except KeyboardInterrupt:
        return CRASH


if __name__ == "__main__":
    raise SystemExit(main())
