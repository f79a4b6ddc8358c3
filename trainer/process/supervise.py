"""The entry, on a laptop and as PID 1 of the container. It starts uploader, observer and trainer.

Standard library only. Nothing here waits for the store: the uploader does whatever needs it. The uploader has a
session of its own, so that it can finish a checkpoint after the trainer has died.

    python -m trainer.process.supervise digits --epochs 4      (options: python -m trainer.train digits --help)
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from trainer.contract import CRASH, DRAIN_SECONDS, Exit, RunEnv, UserError, attempt_key, run_key
from trainer.process import spot
from trainer.process.channel import SOCKET_VARIABLE, Message, attempt_dir, read_json
from trainer.process.children import ObserverProcess, TrainerProcess, UploaderProcess, torch_environ
from trainer.process.scratch import open_scratch
from trainer.text import forgive_output, say

HELP = """
environment: where the run lives (the options above say what it computes)
  TRAINER_STORE         s3://bucket/prefix or a folder for all results    (out)
  TRAINER_RUN_ID        name of the run; the same name continues it       (the recipe's name)
  TRAINER_DATA          hub id, parquet or image folder, prepared shards  (the recipe's own)
  TRAINER_SCRATCH_DIR   local folder for prepared data, may be lost       (.scratch)
  TRAINER_SECRETS_DIR   folder with the file hf_token, for gated data     (none: HF_TOKEN)
  TRAINER_DEADLINE      Unix seconds: the last save is tried until then   (an hour after the last step)
  PET_NPROC_PER_NODE    processes of this machine (NPROC= of make)        (one on each GPU; 1 on a CPU)

exit codes: 0 finished, 75 interrupted and saved, 76 another trainer has the run, 78 you must change something
"""
PATIENCE_SECONDS = 3600  # how long the last upload of a finished training is tried, without TRAINER_DEADLINE
NOTHING: Message = {"code": Exit.INTERRUPTED, "message": "nothing had begun"}


def run_env(recipe: str) -> RunEnv:
    """The run's variables. Defaults for a laptop: store `out`, scratch `.scratch`, the recipe's name as the run."""
    defaults = {"TRAINER_STORE": "out", "TRAINER_RUN_ID": recipe, "TRAINER_SCRATCH_DIR": ".scratch"}
    return RunEnv.from_environ(defaults | {name: value for name, value in os.environ.items() if value})


class Signals:
    """SIGTERM, SIGINT, SIGHUP and spot notices. The first is passed on; a second SIGINT ends everything at once."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self.first = math.inf
        self.reason = "stopping"
        self.trainer: TrainerProcess | None = None
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup has it ignored
                signal.signal(number, self.handle)

    def seconds_since(self) -> float:
        """Seconds since the first signal; minus infinity before there was one."""
        return time.monotonic() - self.first

    def handle(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)
        if len(self.received) == 1:
            self.first = time.monotonic()
            what = "finishing the step and saving it" if self.trainer else "ending as soon as the store allows"
            say(f"{self.reason}: {what} (Ctrl-C again: leave at once)")
            if self.trainer is not None:
                self.trainer.interrupt()
        elif self.received.count(signal.SIGINT) > 1:
            say("second Ctrl-C: leaving at once, without a last save")
            if self.trainer is None:
                raise KeyboardInterrupt
            self.trainer.kill()

    def notice(self, action: str, when: str) -> None:
        """The machine will be gone in two minutes: have the work saved, go on, and act as on SIGTERM in time.

        The second save makes up for the first one's age. If it does not get through, the first one is there.
        """
        self.reason = f"spot notice: this machine is reclaimed at {when}"
        seconds = spot.seconds_to_train(when, time.time())
        if seconds and self.trainer is not None and self.trainer.save():
            say(f"{self.reason}: saving now, going on for {seconds:.0f} s, and then saving again")
            time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGTERM)

    def rebalance(self) -> None:
        """The machine may be reclaimed soon: have the work saved, and go on."""
        if self.trainer is not None and self.trainer.save():
            say("rebalance recommendation: this machine may be reclaimed soon: saving now, and going on")

    def upload_until(self, patience_seconds: float) -> Callable[[], float]:
        """The deadline (time.monotonic()) of an upload that begins now. A signal leaves it half of the drain's rest."""
        began = time.monotonic()

        def until() -> float:
            if not self.received:
                return began + patience_seconds
            start = max(began, self.first)
            return min(began + patience_seconds, start + max(5.0, (DRAIN_SECONDS - (start - self.first)) / 2))

        return until


def run_trainer(arguments: Sequence[str], environ: dict[str, str], local: Path, signals: Signals) -> Message:
    """Run the trainer to its end. Returns its `code` (CRASH if it left none), `message` and `run_failed`."""
    if signals.received:
        return NOTHING
    shutil.rmtree(local, ignore_errors=True)  # an older run of this name may have left it, whose store was removed
    (local / "pids").mkdir(parents=True)
    trainer = signals.trainer = TrainerProcess(arguments, environ, local)
    if signals.received:  # it came just before the trainer could be told
        trainer.kill()
    trainer.wait(signals.seconds_since)
    signals.trainer = None
    ended = read_json(local / "exit.json")
    if ended is None and signals.received and read_json(local / "status.json") is None:
        return NOTHING
    if ended is None:
        killed = f" ({signal.Signals(-code).name})" if (code := trainer.process.returncode) < 0 else ""
        return {"code": CRASH, "message": f"the trainer died without a word{killed}: see its output above"}
    if ended["code"] == Exit.INTERRUPTED and not signals.received and not trainer.is_alone:
        return {"code": CRASH, "message": "a process of the trainer died, and torchrun stopped the others: see above"}
    return ended


def interrupted(message: str) -> int:
    say(f"interrupted; {message}. The same command continues from there.")
    return Exit.INTERRUPTED


def report(environ: dict[str, str]) -> bool:
    """Draw the curves, store them and print the summary. Returns whether that worked: the training counts anyway."""
    return subprocess.run([sys.executable, "-m", "trainer.report"], env=environ, check=False).returncode == 0


def child_environ(recipe: dict[str, Any], env: RunEnv) -> dict[str, str]:
    """The variables of the uploader and the trainer: defaults for torch, then this process's own, then the run's."""
    compiled = {}  # where numba keeps machine code: beside the source, unless that is read-only, as in the container
    if not os.access(Path(__file__).parents[1] / "data", os.W_OK):
        compiled["NUMBA_CACHE_DIR"] = str(open_scratch(Path(env.scratch_dir) / "numba"))
    # inductor's own place is /tmp, which ends with a container, and Triton's is a home. A user's variable wins.
    kernels = Path(env.scratch_dir).absolute() / "inductor"
    compiled |= {"TORCHINDUCTOR_CACHE_DIR": str(kernels), "TRITON_CACHE_DIR": str(kernels / "triton")}
    return compiled | torch_environ(recipe) | os.environ | env.to_environ()


def supervise(arguments: Sequence[str]) -> int:
    """Check the command line, start the uploader, run the trainer, and return the exit code of the attempt."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise UserError(
            "torchrun started this, and each of its processes would be a run of its own: start the trainer itself, "
            "which starts torchrun: make train NPROC=2, or PET_NPROC_PER_NODE=2 python -m trainer.train with the same "
            "options; on each of several machines: make train NODES=2 RENDEZVOUS=host:port"
        )
    signals = Signals()
    if source := spot.documents(os.environ):
        spot.Poller(source, signals.notice, signals.rebalance, say).start()
    check = subprocess.run(
        [sys.executable, "-m", "trainer.recipes.command_line", *arguments],
        stdout=subprocess.PIPE, text=True, check=False, start_new_session=True,
    )  # fmt: skip
    if check.returncode or {"-h", "--help"} & set(arguments):
        print(check.stdout + (HELP if not check.returncode else ""), end="")
        return check.returncode
    recipe = json.loads(check.stdout)
    env = run_env(recipe["recipe"])
    open_scratch(env.scratch_dir)
    environ = child_environ(recipe, env)

    if signals.received:
        return interrupted(NOTHING["message"])
    uploader = UploaderProcess(environ, signals.seconds_since)
    if uploader.state == "finished":
        uploader.finish(DRAIN_SECONDS)
        say(f"run {env.run_id!r} is finished already; `make train RUN=another-name` starts a new one. Its result:")
        return Exit.FINISHED if report(environ) else CRASH
    if uploader.state != "ready":
        code = uploader.finish(DRAIN_SECONDS)
        return interrupted(NOTHING["message"]) if signals.received else code or CRASH

    begun = {"attempt": uploader.attempt, "started": time.time(), "machine": spot.describe_machine(source)}
    env = replace(env, attempt=str(uploader.attempt))
    environ |= env.to_environ() | {SOCKET_VARIABLE: uploader.socket}
    spec = {"recipe": recipe["recipe"], "arguments": list(arguments), "data": env.data}
    uploader.ask(op="create", key=run_key(env.run_id, "spec.json"), body=spec)
    uploader.ask(op="put", key=attempt_key(env.run_id, uploader.attempt), body=begun)
    observer = ObserverProcess(environ, uploader)
    ended = run_trainer(arguments, environ, attempt_dir(env), signals) | {"reason": signals.reason}
    return finish_attempt(uploader, observer, env, environ, signals, begun, ended)


def copies(uploader: UploaderProcess, env: RunEnv) -> Message:
    """What `done.json` repeats of other files, so that a list of many runs reads one of each: the result, and how the
    first attempt began. What is not known is left out."""
    found = {"result": read_json(attempt_dir(env) / "result.json"), "first": uploader.first}
    return {name: value for name, value in found.items() if value}


def finish_attempt(
    uploader: UploaderProcess, observer: ObserverProcess, env: RunEnv, environ: dict[str, str], signals: Signals,
    begun: Message, ended: Message,
) -> int:  # fmt: skip
    """Wait for the last uploads, record how the attempt `ended` beside how it had `begun`, and return its exit code."""
    code, message = int(ended["code"]), ended["message"]
    patience = DRAIN_SECONDS / 2
    if code == Exit.FINISHED:
        patience = max(DRAIN_SECONDS, float(env.deadline or time.time() + PATIENCE_SECONDS) - time.time())
    else:
        observer.tell_end(ended)  # it ends meanwhile
    answer = uploader.flush(signals.upload_until(patience))
    saved, local_copy = answer.get("drained", False), answer.get("kept")
    if code == Exit.FINISHED:  # which is only true now
        observer.tell_end(ended if saved else ended | {"code": CRASH, "message": f"not all of it is in {env.store}"})
    observer.finish()
    if code == Exit.FINISHED and saved:
        report(environ)
    body = begun | {"exit": code, "message": message, "ended": time.time()}
    if code == Exit.INTERRUPTED:
        body["reason"] = ended["reason"]
    uploader.ask(op="put", key=attempt_key(env.run_id, uploader.attempt), body=body)
    if code == Exit.FINISHED and saved:
        uploader.ask(op="create", key=run_key(env.run_id, "done.json"), body=body | copies(uploader, env))
    if code == Exit.USER and ended["run_failed"]:
        uploader.ask(op="put", key=run_key(env.run_id, "failed.json"), body=body)
    if code not in (Exit.FINISHED, Exit.INTERRUPTED):
        say(f"error: {message}")
    seconds_left = DRAIN_SECONDS - max(0.0, signals.seconds_since())
    if uploader.finish(max(5.0, seconds_left)) and (local_copy or code not in (Exit.USER, Exit.HELD)):
        then = "the same command continues from the newest checkpoint there"
        if local_copy:
            then = (
                f"a copy of the last checkpoint is in {local_copy}; the same command on this machine continues from it"
            )
        say(f"error: not everything reached {env.store}; {then}")
        code = CRASH if code in (Exit.FINISHED, Exit.INTERRUPTED) else code
    return interrupted(message) if code == Exit.INTERRUPTED else code


def main() -> int:
    try:
        return supervise(sys.argv[1:])
    except UserError as error:
        say(f"error: {error}")
        return Exit.USER
    except KeyboardInterrupt:
        return CRASH


if __name__ == "__main__":
    forgive_output()
    raise SystemExit(main())
