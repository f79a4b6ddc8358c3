"""A stand-in for a training run: the real uploader, the real checkpoints, and a loop that only pretends to learn.

`python -m tests.chaos.standin` imports torch once and then forks an attempt for each line on its standard input; the
attempt is a supervisor that starts the real uploader process and forks a trainer. What they did stands in a log of
JSON lines that survives SIGKILL. The state of a step is a function of the run and the step, so whoever reads a
checkpoint back can tell whether it is that of the step that it claims to be.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
import traceback
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.checkpoint.restore import restore
from trainer.checkpoint.saver import Checkpointer
from trainer.contract import Exit, LostRunError, RunEnv, UserError, metrics_key
from trainer.process.channel import SOCKET_VARIABLE, Channel, attempt_dir, write_json
from trainer.process.children import UploaderProcess
from trainer.store import open_store
from trainer.store.retry import patiently

SAVED_BY_THE_END = 45.0  # seconds


@dataclass(frozen=True, kw_only=True)
class Play:
    """What an attempt does. Plain values: it travels as JSON."""

    log: str
    environ: dict[str, str]
    numbers: int = 20_000  # int32s in the state
    last_step: int = 8
    step_seconds: float = 0.02
    busy: float = 0.2  # the share of a step that computes
    every_steps: int = 1  # 0: by `every_seconds`
    every_seconds: float = 1.0
    lockstep: bool = False  # each save waits for its commit
    drain_seconds: float = 20.0
    ask_metrics: bool = True


def contents(run_id: str, step: int, numbers: int) -> dict[str, Tensor]:
    """The state of a step: no two places, steps or runs look alike."""
    salt = zlib.crc32(run_id.encode()) & 0x3FFFFFFF
    weights = torch.arange(numbers, dtype=torch.int32) * 1103 + salt + step
    return {"weights": weights, "step": torch.tensor([step, salt], dtype=torch.int64)}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return all(torch.equal(found[name], expected[name]) for name in expected)


class Log:
    """JSON lines, each written at once: what is in it happened before whatever came after."""

    def __init__(self, path: str):
        self.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def __call__(self, event: str, **values: Any) -> None:
        os.write(self.fd, (json.dumps({"event": event, "time": time.time(), **values}) + "\n").encode())


def waited_ns() -> int:
    """How long this thread was ready to run while others had the processor: not the trainer's fault."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1])


class Clock:
    """Step time, and how much of it this thread was held up: by a lock, by the interpreter, by a system call."""

    def __init__(self) -> None:
        self.seconds = self.blocked = 0.0

    def busy(self, seconds: float) -> None:
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            sum(range(500))

    def start(self) -> None:
        self.began = time.perf_counter(), time.thread_time(), waited_ns()

    def stop(self) -> float:
        wall, cpu, waited = self.began
        blocked = time.perf_counter() - wall - (time.thread_time() - cpu) - (waited_ns() - waited) / 1e9
        self.blocked += max(0.0, blocked)
        return blocked


def train(play: Play, log: Log) -> int:
    """The trainer's part; its exit code."""
    env = RunEnv.from_environ(os.environ)
    tensors = contents(env.run_id, 0, play.numbers)
    store = open_store(env.store)
    log("trainer", pid=os.getpid())
    try:
        channel = Channel.to_uploader()
        log("connected")
        restored, skipped = patiently(
            "the store", lambda: restore(store, env.run_id, tensors), lambda line: log("waits", line=line)
        )
        step = restored.step if restored else 0
        right = same(tensors, contents(env.run_id, step, play.numbers))
        log("restored", step=step, right=right, key=restored.key if restored else "", skipped=skipped)
        manifest = {"run_id": env.run_id, "attempt": int(env.attempt), "config": {}, "data": {}}
        origin = (restored.step, restored.key, restored.counters) if restored else (-1, "", {})
        checkpointer = Checkpointer(tensors, channel, manifest, restored=origin)
        return steps(play, log, env, tensors, channel, checkpointer, step)
    except LostRunError as error:
        log("lost", message=str(error))
        return int(Exit.HELD)
    except UserError as error:
        log("refused", message=str(error))
        return int(Exit.USER)
    except Exception as error:  # noqa: BLE001  # a crash, as the supervisor would see it
        log("crashed", message=f"{type(error).__name__}: {error}", where=traceback.format_exc(limit=4))
        return 1


def steps(
    play: Play, log: Log, env: RunEnv, tensors: dict[str, Tensor], channel: Channel, saver: Checkpointer, step: int
) -> int:
    known, clock, counted = "", Clock(), step
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))

    def look() -> None:
        nonlocal known
        saver.poll()
        if saver.committed != known:
            known = saver.committed
            log("committed", key=known)

    def save(at: int) -> None:
        if play.ask_metrics:
            key = metrics_key(env.run_id, int(env.attempt), f"{at:08d}-{at:08d}.jsonl")
            channel.send({"op": "put", "key": key, "body": {"step": at}})
        log("saving", step=at)
        if saver.save(at, {"step": at}, is_best=at % 3 == 0):
            log("saved", step=at)

    clock_from = time.perf_counter()
    while step < play.last_step and not stop:
        step += 1
        began = time.perf_counter()
        for name, tensor in contents(env.run_id, step, play.numbers).items():
            tensors[name].copy_(tensor)
        clock.start()
        clock.busy(play.step_seconds * play.busy)
        look()
        if step % play.every_steps == 0 if play.every_steps else saver.is_due(play.every_seconds):
            save(step)
        clock.stop()
        if play.lockstep:
            deadline = time.monotonic() + 10
            while saver.saved_step == step and f"{step:08d}" not in known and time.monotonic() < deadline:
                look()
                time.sleep(0.001)
        if time.perf_counter() - clock_from >= 1:
            wall = time.perf_counter() - clock_from
            log("second", step=step, steps=step - counted, blocked=clock.blocked, seconds=wall)
            clock, counted, clock_from = Clock(), step, time.perf_counter()
            write_json(attempt_dir(env) / "status.json", {"phase": "training", "step": step})
        time.sleep(max(0.0, play.step_seconds - (time.perf_counter() - began)))
    log("stopping", step=step)
    give_up = time.monotonic() + SAVED_BY_THE_END
    saver.save_last(step, {"step": step}, lambda: give_up)
    look()
    log("done", step=step)
    return 0


def die_with_parent() -> None:
    """However the laboratory ends, no attempt goes on without it."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def attempt(play: Play) -> int:
    """The supervisor's part: uploader, trainer, the end of both, as `trainer.process.supervise` does it."""
    log = Log(play.log)
    die_with_parent()
    errors = os.open(f"{play.log}.stderr", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(errors, 2)
    for number in (0, 1):
        os.dup2(os.open(os.devnull, os.O_RDWR), number)
    os.environ.clear()
    os.environ.update(play.environ)
    log("supervisor", pid=os.getpid())
    uploader = UploaderProcess(dict(os.environ))
    log("uploader", pid=uploader.process.pid, state=uploader.state, attempt=uploader.attempt)
    if uploader.state != "ready":
        return uploader.finish(play.drain_seconds) or 1
    os.environ |= {"TRAINER_ATTEMPT": str(uploader.attempt), SOCKET_VARIABLE: uploader.socket}
    attempt_dir(RunEnv.from_environ(os.environ)).mkdir(parents=True, exist_ok=True)
    if not (trainer := os.fork()):
        code = 1
        try:
            die_with_parent()
            for pipe in (uploader.process.stdin, uploader.process.stdout):  # the supervisor's alone
                if pipe is not None:
                    os.close(pipe.fileno())
            code = train(play, log)
        finally:
            os._exit(code)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(trainer, signal.SIGTERM))
    code = os.waitstatus_to_exitcode(os.waitpid(trainer, 0)[1])
    give_up = time.monotonic() + play.drain_seconds
    drained = uploader.flush(lambda: give_up).get("drained", False)
    finished = uploader.finish(play.drain_seconds)
    log("ended", trainer=code, drained=drained, uploader=finished)
    return code if code > 0 else 1 if code or finished else 0


def serve() -> None:
    """One attempt for each line. Nobody reaps them: who waits for one holds its pidfd."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        if pid := os.fork():
            print(json.dumps({"pid": pid}), flush=True)
            continue
        play, code = Play(**json.loads(line)), 1
        try:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            code = attempt(play)
        except BaseException:  # noqa: BLE001  # it must not go on as a second server
            traceback.print_exc()
        finally:
            Log(play.log)("exit", code=code)
            os._exit(code)


def to_line(play: Play) -> str:
    return json.dumps(asdict(play)) + "\n"


if __name__ == "__main__":
    serve()
