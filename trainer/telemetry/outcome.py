"""How an attempt ended: exit code and reason for the supervisor, the result of a finished run for the store."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from trainer.contract import Exit, LostRunError, MachineError, RefusedError, RunEnv, UserError, run_key
from trainer.learning.device import gpu_fault
from trainer.learning.lookout import LostPartnerError
from trainer.learning.schedule import Clock
from trainer.learning.state import State
from trainer.learning.world import World
from trainer.process.channel import Channel, DisconnectedError, attempt_dir, exit_file, leave_exit, write_json
from trainer.process.interruption import Interrupted
from trainer.store import StoreError


def tell_outcome(work: Callable[[], tuple[Exit, str]], local: Path, world: World) -> int:
    """Do the work, and leave its exit code and reason in the folder `local`. Returns the code of this process.

    torchrun has one exit code for all that can happen, so the supervisor reads the file.
    """
    try:
        code, message = work()
    except UserError as error:
        code, message = Exit.USER, str(error)
        leave_exit(local, code, message, run_failed=not isinstance(error, RefusedError))
    except Interrupted:
        code, message = Exit.INTERRUPTED, "nothing had to be saved"
    except LostRunError as error:
        code, message = Exit.HELD, str(error)
    except (StoreError, DisconnectedError, MachineError, LostPartnerError) as error:  # no bug: the message says it all
        leave_exit(local, 1, str(error), lost_partner=isinstance(error, LostPartnerError))
        return 1
    except BaseException as error:
        fault = gpu_fault(error)
        leave_exit(local, 1, fault or f"{type(error).__name__}: {error}")
        if fault:  # no bug either: the lines of a traceback are not those that failed
            return 1
        raise
    if world.local_rank == 0 or code not in (Exit.FINISHED, Exit.INTERRUPTED):  # on each machine one tells of success
        leave_exit(local, code, message)
    else:  # whoever leaves this file has died without a word
        exit_file(local).unlink(missing_ok=True)
    # With another code than 0, torchrun ends the other processes and prints pages: only where they must end.
    return int(code) if code in (Exit.USER, Exit.HELD) and world.size > 1 else 0


def put_result(channel: Channel | None, env: RunEnv, clock: Clock, state: State, checkpoint: str, sha256: str) -> None:
    """Hand `result.json` of a finished run to the uploader. `checkpoint` is the key of its last manifest, which has
    this SHA-256. A copy stays on this machine for the supervisor, which repeats it in `done.json`."""
    if channel is None:  # not the main process
        return
    config = clock.config
    body = {
        "run_id": env.run_id, "recipe": config.recipe, "steps": state.step, "epochs": config.epochs,
        "steps_per_epoch": clock.steps_per_epoch, "seconds": state.seconds, "attempts": int(env.attempt),
        "images_per_second": state.step * config.global_batch_size / state.seconds,
        "last": state.scores, "best": state.best, "checkpoint": checkpoint,
        "checkpoint_sha256": sha256,
        "parameters": sum(p.numel() for p in state.model.parameters()),
    }  # fmt: skip
    channel.send({"op": "put", "key": run_key(env.run_id, "result.json"), "body": body})
    with suppress(OSError):  # a full disk: whoever lists runs then reads result.json itself
        write_json(attempt_dir(env) / "result.json", body)
