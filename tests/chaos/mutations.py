"""Stored bytes that change behind the run's back: what is loaded is a state that the run saved, or it is an error.

An older state than the newest may be loaded where the newest is damaged, but never without a word.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.chaos.lab import NUMBERS, RUN, Case, Lab, WrongError, expect
from tests.chaos.standin import contents, same
from trainer.checkpoint.restore import restore
from trainer.contract import UserError, checkpoint_key, run_key, unseal
from trainer.store import StoreError

OTHER = "other"
NEWEST = 5
Objects = dict[str, bytes]
Overlay = dict[str, bytes | None]  # None: removed
HEAD = checkpoint_key(RUN, "HEAD.json")
_bases: dict[str, tuple[Objects, bytes]] = {}  # by folder of a laboratory: made once


def base(lab: Lab) -> tuple[Objects, bytes]:
    """The objects of two finished runs of the same shape, and an older HEAD.json of the first one."""
    if (known := _bases.get(str(lab.folder))) is not None:
        return known
    lab.new_try(s3=False)
    for run_id, last in ((RUN, 2), (RUN, 4), (RUN, NEWEST), (OTHER, NEWEST)):
        first = lab.start(environ={"TRAINER_RUN_ID": run_id}, last_step=last, lockstep=True)
        expect(first.wait() == 0, f"the run to be harmed could not be made: {first.events()[-2:]} {first.errors()}")
        if last == 4:
            old = lab.store().get(HEAD)
    store = lab.store()
    objects = {info.key: store.get(info.key) for prefix in ("checkpoints/", "runs/") for info in store.list(prefix)}
    objects.pop(run_key(RUN, "done.json"), None)
    return _bases.setdefault(str(lab.folder), (objects, old))


def newest(objects: Mapping[str, bytes], run_id: str = RUN) -> tuple[str, str]:
    """The keys of a run's newest manifest and of its data."""
    manifest = json.loads(objects[checkpoint_key(run_id, "HEAD.json")])["newest"]
    return manifest, json.loads(objects[manifest])["object"]["key"]


def bit(dice: random.Random, body: bytes) -> bytes:
    at = dice.randrange(len(body))
    return body[:at] + bytes([body[at] ^ (1 << dice.randrange(8))]) + body[at + 1 :]


def swap(dice: random.Random, body: bytes) -> bytes:
    """Two parts of equal size change places."""
    size = len(body) // 8
    first, second = sorted(dice.sample(range(8), 2))
    parts = [body[i * size : (i + 1) * size] for i in range(8)] + [body[8 * size :]]
    parts[first], parts[second] = parts[second], parts[first]
    return b"".join(parts)


HARMS: dict[str, Callable[[random.Random, bytes], bytes | None]] = {
    "bit": bit,
    "truncated": lambda dice, body: body[: dice.randrange(1, len(body))],
    "zero-length": lambda dice, body: b"",
    "missing": lambda dice, body: None,
    "swapped": swap,
    "longer": lambda dice, body: body + body[-dice.randrange(1, 100) :],
}


def overlay(dice: random.Random, objects: Objects, old_lease: bytes) -> tuple[str, Overlay]:
    """One mutation: its name and what it changes. Half of them are single bits."""
    manifest, data = newest(objects)
    targets = {"data": data, "manifest": manifest, "HEAD": HEAD}
    choice = dice.random()
    if choice < 0.8:
        target = dice.choice(list(targets))
        harm = "bit" if choice < 0.5 else dice.choice([name for name in HARMS if name != "bit"])
        return f"{target} {harm}", {targets[target]: HARMS[harm](dice, objects[targets[target]])}
    their_manifest, their_data = newest(objects, OTHER)
    theirs_as_ours = objects[their_manifest].replace(their_data.encode(), data.encode())
    whole: dict[str, Overlay] = {
        "HEAD stale": {HEAD: old_lease},
        "HEAD of another run": {HEAD: objects[checkpoint_key(OTHER, "HEAD.json")]},
        "data of another run": {data: objects[their_data]},
        "manifest of another run": {manifest: objects[their_manifest]},
        "manifest and data of another run": {manifest: theirs_as_ours, data: objects[their_data]},
        "data and previous data bit": {
            key: bit(dice, body) for key, body in objects.items() if key.startswith(checkpoint_key(RUN, "data/"))
        },
    }
    name = dice.choice(list(whole))
    return name, whole[name]


def saved(objects: Objects) -> dict[str, dict[str, object]]:
    """What the run's manifests said when they were written."""
    return {key: unseal(body) for key, body in objects.items() if "/manifest/" in key and f"/{RUN}/" in key}


def judge_read(lab: Lab, name: str, objects: Objects) -> bool:
    """Read as the trainer does; whether something was loaded. WrongError for a silent or a false one."""
    tensors = contents(RUN, 0, NUMBERS)
    try:
        restored, said = restore(lab.store(), RUN, tensors)
    except (UserError, StoreError) as error:
        expect(same(tensors, contents(RUN, 0, NUMBERS)), f"{name}: refused, after the state was touched: {error}")
        return False
    except Exception as error:
        raise WrongError(f"{name}: the reader fails without a reason: {type(error).__name__}: {error}") from error
    step = restored.step if restored else 0
    expect(same(tensors, contents(RUN, step, NUMBERS)), f"{name}: SILENT: step {step} has another state")
    expect(step == NEWEST or bool(said), f"{name}: SILENT: step {step} instead of {NEWEST}, without a word")
    manifest = dict(restored.manifest) if restored else {}
    expect(not restored or manifest in saved(objects).values(), f"{name}: SILENT: the manifest of step {step} changed")
    return True


def judge_start(lab: Lab, name: str) -> None:
    """Start as a run does: uploader, adoption, reader."""
    attempt = lab.start(last_step=NEWEST + 1, lockstep=True)
    code, said = attempt.wait(), attempt.errors()
    restored = attempt.last("restored")
    if code:
        expect(bool(said or attempt.last("refused")), f"{name}: ended {code} without a reason")
        expect(
            "Traceback" not in said and not attempt.events("crashed"),
            f"{name}: {said[-500:]} {attempt.last('crashed')}",
        )
        return
    expect(restored["right"], f"{name}: SILENT: started from another state as step {restored['step']}")
    about = bool(restored["skipped"] or said.strip())
    expect(restored["step"] == NEWEST or about, f"{name}: SILENT: started from step {restored['step']}, without a word")
    lab.read()


def mutation(lab: Lab, seed: int) -> Case:
    """On a folder. HEAD's mutations and every tenth meet a whole start, the others the reader."""
    objects, old_lease = base(lab)
    dice = random.Random(seed)
    name, changed = overlay(dice, objects, old_lease)
    lab.new_try(s3=False)
    for key, body in (objects | changed).items():
        if body is not None:
            path = Path(lab.uri) / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)
    loaded = False
    if not name.startswith("HEAD"):
        loaded = judge_read(lab, name, objects)
    if name.startswith("HEAD") or seed % 10 == 0:
        judge_start(lab, name)
    return Case(notes={"loaded": float(loaded)} if not name.startswith("HEAD") else {})


def mutation_s3(lab: Lab, seed: int) -> Case:
    """The same objects in S3, read by the reader."""
    objects, old_lease = base(lab)
    name, changed = overlay(random.Random(seed), objects, old_lease)
    lab.new_try(s3=True)
    store = lab.store()
    for key, body in (objects | changed).items():
        if body is not None and (key.startswith("checkpoints/") or seed % 5 == 0):
            store.put(key, body)
    if not name.startswith("HEAD"):
        judge_read(lab, name, objects)
    if name.startswith("HEAD") or seed % 5 == 0:
        judge_start(lab, name)
    return Case()
