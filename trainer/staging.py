"""Gets the data of a run onto this machine: inside an attempt, or before this machine joins one that is under way.

The supervisor starts it as a process of its own on a machine that joins. It needs no other process, and no torch
unless the data has yet to be prepared.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from trainer.contract import CRASH, Exit, MachineError, Phase, RunEnv, UserError
from trainer.data.format import Copies
from trainer.data.stage import stage
from trainer.process.channel import attempt_dir, leave_exit, register
from trainer.process.nodes import blaming_this_machine
from trainer.recipes.command_line import command_line_or_exit
from trainer.recipes.config import Config
from trainer.recipes.named import default_data
from trainer.recipes.sides import wanted_spans
from trainer.store import StoreError, may_pass, naming_the_fix
from trainer.store.retry import patiently
from trainer.telemetry.status import Status
from trainer.text import forgive_output, tell

STANDSTILL_SECONDS = 600.0  # as long as the guard leaves the machine that leads (infra/guard/rules.py)
STANDSTILL_LOOK_SECONDS = 5.0


def fetch_data(config: Config, env: RunEnv, status: Status, tell: Callable[[str], None]) -> Path:
    """The folder of the prepared data on this machine: fetched, made, or found. Raises UserError, StoreError."""
    data, scratch = env.data or default_data(config.recipe), Path(env.scratch_dir).absolute()
    copies = Copies(config.data.train_sides, (config.data.val_side,), config.data.quality)
    what = f"the data {data}, or the scratch folder {scratch},"

    def fetch() -> Path:
        return stage(data, scratch, copies, wanted_spans(config), secrets_dir=env.secrets_dir, progress=status.tick)

    with naming_the_fix(what):  # OSError; what a store says goes through patiently
        return patiently(what, fetch, tell, worth_it=may_pass)


def tell_waiting(status: Status, line: str, *, speaks: bool) -> None:
    """Say that a store fails, and what is done about it."""
    status.enter(Phase.WAITING_FOR_STORE)
    if speaks:
        tell(line, sys.stderr)


def end_if_it_stalls(status: Status, local: Path, seconds: float = STANDSTILL_SECONDS) -> None:
    """End this process when its counter has stood still for so long: it has no partner that would miss it."""
    seen, since = status.progress, time.monotonic()
    while True:
        time.sleep(min(STANDSTILL_LOOK_SECONDS, seconds))
        if status.progress != seen:
            seen, since = status.progress, time.monotonic()
        elif time.monotonic() >= since + seconds:
            leave_exit(local, CRASH, f"the data of this machine has not got on for {seconds:g} s")
            os._exit(CRASH)


def main(config: Config) -> int:
    """Leaves how it went where the supervisor looks for the reason of a trainer's end. Returns the exit code."""
    env = RunEnv.from_environ(os.environ)
    local = attempt_dir(env)

    def leave(number: int, frame: FrameType | None) -> None:
        leave_exit(local, Exit.INTERRUPTED, "nothing had to be saved")
        os._exit(Exit.INTERRUPTED)  # what has arrived is kept; the hub's client would first finish its downloads

    signal.signal(signal.SIGTERM, leave)
    status = Status(local / "status.json", writes=True)
    status.enter(Phase.STAGING)
    threading.Thread(target=end_if_it_stalls, args=[status, local], daemon=True, name="stall").start()
    code, message = Exit.FINISHED, "the data is here"
    try:
        with blaming_this_machine(env):
            fetch_data(config, env, status, lambda line: tell_waiting(status, line, speaks=True))
    except UserError as error:
        code, message = Exit.USER, str(error)
    except (StoreError, MachineError) as error:  # no bug: the message says it all
        leave_exit(local, CRASH, str(error))
        return CRASH
    except BaseException as error:
        leave_exit(local, CRASH, f"{type(error).__name__}: {error}")
        raise
    leave_exit(local, code, message)
    return code


if __name__ == "__main__":
    forgive_output()
    register(attempt_dir(RunEnv.from_environ(os.environ)))
    raise SystemExit(main(command_line_or_exit("python -m trainer.train")))
