"""Processes that would not train the same are refused at the start: each tells what it has, and all compare.

What differs unseen would cost the run: other weights on each machine, or a wait without an end. The machine that leads
is right. Another one that differs from it is refused and leaves, and the others meet again without it.
"""

from __future__ import annotations

import hashlib
import os
import platform
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from trainer.contract import RefusedError, RunEnv
from trainer.data.format import Index
from trainer.learning.lookout import LostPartnerError
from trainer.learning.world import World
from trainer.origin import git_commit
from trainer.recipes.config import Config
from trainer.recipes.fields import flatten

SHOWN_DIFFERENCES = 5


def agree_on_start(config: Config, env: RunEnv, world: World) -> None:
    """Compare what decides how each process computes, and how fast: run, options, code, torch and GPUs.

    Raises RefusedError, LostPartnerError. GPUs of different kinds in one machine are told, and not refused
    (`check_device`). Machines of different kinds would be slower than their price, and one that comes for a lost one
    must not change the bits.
    """
    if world.size == 1:
        return
    kinds = {platform.machine()}
    if world.device.type == "cuda":
        count = min(torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", world.size)))
        kinds = {torch.cuda.get_device_name(number) for number in range(count)}
    facts = {
        "run": env.run_id, "code": f"{git_commit() or 'no commit'} with files {code_digest()}",
        "image": os.environ.get("TRAINER_IMAGE", "none"), "torch": torch.__version__,
        "device": ", ".join(sorted(kinds)),
    }  # fmt: skip
    options = {f"--{name.replace('_', '-')}": str(value) for name, value in flatten(config).items()}
    compare_facts(facts | options, world)


def agree_on_data(index: Index, world: World) -> None:
    """Compare the images that the processes are about to train on. Raises RefusedError, LostPartnerError."""
    if world.size > 1:
        compare_facts({"data": f"{index.name} {index.version} ({index.fingerprint[:12]})"}, world)


def code_digest() -> str:
    """The first digits of the SHA-256 of the trainer's source: a commit does not tell what was changed since."""
    digest, folder = hashlib.sha256(), Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def compare_facts(facts: Mapping[str, str], world: World) -> None:
    """Compare the facts of all processes. What is said has the ranks and machines of each value.

    Raises RefusedError on each process of a machine that differs from the one that leads, and LostPartnerError on the
    others, which can meet again. Where the processes of the leading machine differ among themselves, all are refused.
    """
    found: list[Any] = [None] * world.size
    machine = os.environ.get("TRAINER_NODE") or socket.gethostname()
    torch.distributed.all_gather_object(found, (machine, dict(facts)))
    leader, right = found[0]
    wrong = dict.fromkeys(where for where, other in found if other != right)
    if not wrong:
        return
    told = f"the processes of this run would not train the same. {show_differences(found)}."
    same = "the same code, options, data and kind of GPU"
    if leader in wrong:
        raise RefusedError(f"{told} Give every machine {same}, and start again")
    if machine in wrong:
        raise RefusedError(f"{told} {leader} leads the run: give this machine {same}, and start it again")
    raise LostPartnerError(f"{told} The run goes on without {', '.join(wrong)}, since {leader} leads it")


def show_differences(found: Sequence[tuple[str, Mapping[str, str]]]) -> str:
    """The first facts that differ, each with its values and who has them. `found` has machine and facts by rank."""
    names = dict.fromkeys(name for _, facts in found for name in facts)
    differing = [name for name in names if len({facts.get(name) for _, facts in found}) > 1]
    said = []
    for name in differing[:SHOWN_DIFFERENCES]:
        holders: dict[str, list[str]] = {}
        for rank, (where, facts) in enumerate(found):
            holders.setdefault(str(facts.get(name, "none")), []).append(f"rank {rank} on {where}")
        said.append(f"{name}: " + ", ".join(f"{value} ({'; '.join(who)})" for value, who in holders.items()))
    more = f", and {len(differing) - SHOWN_DIFFERENCES} more" if len(differing) > SHOWN_DIFFERENCES else ""
    return ". ".join(said) + more
