"""What the processes of a machine wrote about a hang (trainer/learning/lookout.py), from its attempt's folder."""

from __future__ import annotations

import platform

from trainer.contract import RunEnv, run_key
from trainer.process.channel import attempt_dir
from trainer.store import ObjectStore, StoreError


def ship_hangs(env: RunEnv, store: ObjectStore) -> str:
    """Store the files `hang.*` of the attempt under `hangs/<attempt>/`, each with the machine's name before its own.

    Returns why some of them could not be stored; "" if all are. They stay on this machine in any case.
    """
    node = env.node or platform.node()
    try:
        for path in sorted(attempt_dir(env).glob("hang.*")):
            store.put(run_key(env.run_id, f"hangs/{env.attempt}/{node}-{path.name}"), path.read_bytes())
    except (OSError, StoreError, ValueError) as error:
        return f"the stacks of a hang stay in {attempt_dir(env)}: {error}"
    return ""
