"""The entry, on a laptop and as PID 1 of the container. It starts uploader, observer and trainer.

Standard library only. Nothing here waits for the store: the uploader does whatever needs it. The uploader has a
session of its own, so that it can finish a checkpoint after the trainer has died.

    python -m trainer.process.supervise digits --epochs 4      (options: python -m trainer.train digits --help)
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from trainer.contract import CRASH, DRAIN_SECONDS, Exit, MachineError, Phase, RunEnv, UserError, attempt_key, run_key
from trainer.process import nodes, spot
from trainer.process.channel import SOCKET_VARIABLE, Message, attempt_dir, read_json
from trainer.process.children import MemberProcess, ObserverProcess, StagingProcess, TrainerProcess, UploaderProcess
from trainer.process.counts import PROCESSES, torch_environ
from trainer.process.nodes import Meetings, as_node, check_shares, has_others, torchrun_environ
from trainer.process.scratch import open_scratch
from trainer.process.signals import Signals
from trainer.text import forgive_output, say

HELP = """
environment: where the run lives (the options above say what it computes)
  TRAINER_STORE         s3://bucket/prefix or a folder for all results    (out)
  TRAINER_RUN_ID        name of the run; the same name continues it       (the recipe's name)
  TRAINER_DATA          hub id, parquet or image folder, prepared shards  (the recipe's own)
  TRAINER_SCRATCH_DIR   local folder for prepared data, may be lost       (.scratch)
  TRAINER_SECRETS_DIR   folder with the file hf_token, for gated data     (none: HF_TOKEN)
  TRAINER_DEADLINE      Unix seconds: the last save is tried until then   (an hour after the last step)
  TRAINER_NODES         the most machines that train the run, 1 to 16      (1)
  TRAINER_RENDEZVOUS    host:port where they meet; that host leads        (who takes the run first leads)
  TRAINER_ADDRESS       this machine's IPv4 address for the others        (that of the way to them)
  PET_NPROC_PER_NODE    processes of this machine (NPROC= of make)        (one on each GPU; 1 on a CPU)

exit codes: 0 finished, 75 interrupted and saved, 76 another trainer has the run, 78 you must change something,
            70 this machine of several only crashed
"""
PATIENCE_SECONDS = 3600  # how long the last upload of a finished training is tried, without TRAINER_DEADLINE
NOTHING: Message = {"code": Exit.INTERRUPTED, "message": "nothing had begun"}


def run_env(recipe: str) -> RunEnv:
    """The run's variables. Defaults for a laptop: store `out`, scratch `.scratch`, the recipe's name as the run."""
    defaults = {"TRAINER_STORE": "out", "TRAINER_RUN_ID": recipe, "TRAINER_SCRATCH_DIR": ".scratch"}
    return RunEnv.from_environ(defaults | {name: value for name, value in os.environ.items() if value})


def run_trainer(
    arguments: Sequence[str], environ: dict[str, str], local: Path, signals: Signals,
    start: Callable[[Sequence[str], dict[str, str], Path], TrainerProcess] = TrainerProcess,
) -> Message:  # fmt: skip
    """Run the trainer to its end. Returns its `code` (CRASH if it left none), `message` and `run_failed`.

    `lost_partner` tells of a crash that no process of this machine is known to have caused.
    """
    if signals.received:
        return NOTHING
    shutil.rmtree(local, ignore_errors=True)  # an older run of this name may have left it, whose store was removed
    (local / "pids").mkdir(parents=True)
    trainer = signals.trainer = start(arguments, environ, local)
    if signals.received:  # it came just before the trainer could be told
        trainer.kill()
    trainer.wait(signals.seconds_since)
    signals.trainer = None
    ended = read_json(local / "exit.json")
    phase = (read_json(local / "status.json") or {}).get("phase", Phase.STARTING)
    if ended is None and signals.received and phase in (Phase.STARTING, Phase.STAGING):  # it waited for another one
        return NOTHING
    if ended is None:
        killed = f" ({signal.Signals(-code).name})" if (code := trainer.process.returncode) < 0 else ""
        message = f"the trainer died without a word{killed}: see its output above"
        is_lost = trainer.is_ended or not any((local / "pids").iterdir())
        return {"code": CRASH, "message": message, "lost_partner": is_lost}
    if ended.get("lost_partner") and any(local.glob(".exit.*")):
        return ended | {"lost_partner": False, "message": f"a process of this machine died: {ended['message']}"}
    if ended["code"] == Exit.INTERRUPTED and not (signals.received or trainer.is_alone or trainer.has_others):
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
    """Check the command line, and run attempts until no machines are to meet again. Returns the last exit code."""
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
    env = as_node(run_env(recipe["recipe"]))
    with nodes.blaming_this_machine(env):
        open_scratch(env.scratch_dir)
    environ, meetings = child_environ(recipe, env), Meetings()
    check_shares(env, recipe, int(environ[PROCESSES]))
    while (code := attempt(arguments, recipe["recipe"], env, environ, signals, meetings, source)) is None:
        say("the machines of the run meet again, and continue from the newest checkpoint")
    return code


def attempt(
    arguments: Sequence[str], recipe: str, env: RunEnv, environ: dict[str, str], signals: Signals, meetings: Meetings,
    source: spot.Documents | None,
) -> int | None:  # fmt: skip
    """One attempt, as its head or as a member. Returns the exit code, or None where the machines are to meet again."""
    if signals.received:
        return interrupted(NOTHING["message"])
    uploader = UploaderProcess(environ | meetings.environ(env, lambda: bool(signals.received)), signals.seconds_since)
    if uploader.state == "finished":
        uploader.finish(DRAIN_SECONDS)
        if meetings.attempt:  # this machine has trained with those that finished it
            say(f"run {env.run_id!r} is finished")
            return Exit.FINISHED
        say(f"run {env.run_id!r} is finished already; `make train RUN=another-name` starts a new one. Its result:")
        return Exit.FINISHED if report(environ) else CRASH
    if uploader.state not in ("ready", "member"):
        code = uploader.finish(DRAIN_SECONDS)
        if code == CRASH and meetings.seen_attempt and not signals.received:
            return meetings.end(CRASH, "the store failed before all met again", "", is_own=False)
        return interrupted(NOTHING["message"]) if signals.received else code or CRASH
    env, leads = replace(env, attempt=str(uploader.attempt)), uploader.state == "ready"
    meetings.begin(uploader.attempt, uploader.newest, leads=leads)
    environ |= env.to_environ() | {SOCKET_VARIABLE: uploader.socket}
    if has_others(env):
        environ |= torchrun_environ(env, uploader.rendezvous, uploader.since, is_head=leads, given=os.environ)
    begun = {"attempt": uploader.attempt, "started": time.time(), "machine": spot.describe_machine(source)}
    begun |= {"has_data": True} if meetings.has_data else {}  # so whoever joins gets its own before they meet
    uploader.ask(op="node", machine=begun["machine"])
    if leads:
        spec = {"recipe": recipe, "arguments": list(arguments), "data": env.data}
        uploader.ask(op="create", key=run_key(env.run_id, "spec.json"), body=spec)
        uploader.ask(op="put", key=attempt_key(env.run_id, uploader.attempt), body=begun)
        observer = ObserverProcess(environ, uploader)
        ended = run_trainer(arguments, environ, attempt_dir(env), signals)
        ended = ended | {"reason": signals.reason if signals.received else "the machines of the run meet again"}
        code = finish_attempt(uploader, observer, env, environ, signals, begun, ended)
    else:
        ended = join_attempt(arguments, uploader, env, environ, signals, meetings)
        code = leave_attempt(uploader, ended, meetings)
    meetings.has_data = meetings.has_data or has_trained(env)
    if has_others(env) and not signals.received:
        is_own = ended["code"] == CRASH and not ended.get("lost_partner")
        return meetings.end(code, ended["message"], uploader.newest, is_own=is_own)
    return interrupted(ended["message"]) if code == Exit.INTERRUPTED else code


def join_attempt(
    arguments: Sequence[str], uploader: UploaderProcess, env: RunEnv, environ: dict[str, str], signals: Signals,
    meetings: Meetings,
) -> Message:  # fmt: skip
    """An attempt on a machine that does not lead. It gets its data first, if the others would have to wait for it.

    Returns how it ended, as `run_trainer` does.
    """
    local = attempt_dir(env)
    if uploader.head_has_data and not meetings.has_data:
        say("this machine gets its data, and meets the others then, who train meanwhile")
        uploader.ask(op="node", message="gets its data before it meets the others")
        ended = run_trainer(arguments, environ, local, signals, partial(StagingProcess, uploader=uploader))
        meetings.has_data = ended["code"] == Exit.FINISHED
        standing = uploader.look()
        if not signals.received and (standing == nodes.LEFT or (meetings.has_data and standing != nodes.CURRENT)):
            ended = {"code": Exit.INTERRUPTED, "message": "it has ended while this machine got its data"}
        elif meetings.has_data:
            uploader.ask(op="node", message="")
        if ended["code"] != Exit.FINISHED:
            meetings.join_failed()
            return ended
    ended = run_trainer(arguments, environ, local, signals, partial(MemberProcess, uploader=uploader))
    if not any((local / "pids").glob("*")):
        meetings.join_failed()
    return ended


def leave_attempt(uploader: UploaderProcess, ended: Message, meetings: Meetings) -> int:
    """The end of an attempt on a machine that does not lead. Returns its exit code: finished is what is stored."""
    uploader.ask(op="node", message=ended["message"])
    uploader.finish(DRAIN_SECONDS)
    last = uploader.answer()
    meetings.seen, uploader.newest = json.dumps(last.get("seen", "")), last.get("newest", uploader.newest)
    if ended["code"] not in (Exit.FINISHED, Exit.INTERRUPTED):
        say(f"error: {ended['message']}")
    return Exit.INTERRUPTED if ended["code"] == Exit.FINISHED else int(ended["code"])


def copies(uploader: UploaderProcess, env: RunEnv) -> Message:
    """What `done.json` repeats of other files, so that a list of many runs reads one: result, the first's beginning."""
    found = {"result": read_json(attempt_dir(env) / "result.json"), "first": uploader.first}
    return {name: value for name, value in found.items() if value}


def has_trained(env: RunEnv) -> bool:
    """Whether this machine has done a step in the attempt."""
    return bool((read_json(attempt_dir(env) / "status.json") or {}).get("step"))


def sizes(env: RunEnv) -> Message:
    """How many machines and processes trained, where they were several."""
    status = read_json(attempt_dir(env) / "status.json") or {}
    return {name: status[name] for name in ("nodes", "processes") if name in status}


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
    body = begun | sizes(env) | {"exit": code, "message": message, "ended": time.time()}
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
    return code


def main() -> int:
    try:
        return supervise(sys.argv[1:])
    except UserError as error:
        say(f"error: {error}")
        return Exit.USER
    except MachineError as error:
        say(f"error: {error}")
        return CRASH
    except KeyboardInterrupt:
        return CRASH


if __name__ == "__main__":
    forgive_output()
    raise SystemExit(main())
