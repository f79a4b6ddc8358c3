"""Runs for the tests of `rewind`: trainers of a toy model that save each step, and what a store holds of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.checkpoints import RUN, commit, owner, same, state
from trainer.checkpoint.restore import restore
from trainer.contract import attempt_key, checkpoint_key, parse_manifest_key, run_key
from trainer.manifest import data_key
from trainer.store import ObjectStore
from trainer.telemetry.metrics import read_metrics, start_row
from trainer.upload.owner import Ownership

CONFIG = {"optim": {"peak_lr": 0.1}}


def put_rows(store: ObjectStore, attempt: int, steps: range, origin: int) -> None:
    """What an attempt logs from its start on: `steps` begins with the step from which it goes on."""
    rows = [start_row(attempt, steps[0], origin)] + [{"step": step, "time": 0, "train/loss": 1.0} for step in steps[1:]]
    name = f"runs/{RUN}/metrics/{attempt}/{steps[0]:08d}-{steps[-1]:08d}.jsonl"
    store.put(name, "".join(json.dumps(row) + "\n" for row in rows).encode())


@contextmanager
def training(store: ObjectStore, machine: Path, steps: range, attempt: int = 0, origin: int = 0) -> Iterator[Ownership]:
    """A trainer that owns the run and goes on from the first of the steps. Without `attempt`, it takes the next one."""
    attempt = attempt or 1 + max(int(Path(info.key).stem) for info in store.list(run_key(RUN, "attempts/")))
    store.put(attempt_key(RUN, attempt), b"{}")
    put_rows(store, attempt, steps, origin or attempt - 1)
    ownership = owner(store, attempt, machine)
    ownership.claim(print, lambda before: None)
    ownership.sweep()
    for step in steps[1:]:
        best = {"step": min(step, 2), "top1": 0.5, "weights": "model"}
        commit(ownership, step, state(step), is_best=step == 2, config=CONFIG, counters={"best": best})
    yield ownership
    ownership.release()
    ownership.machine.close()


def first_line(store: ObjectStore, machine: Path) -> None:
    """Attempt 1 saves steps 1 to 6; its config is another one by now."""
    with training(store, machine, range(7), attempt=1):
        pass
    store.put(run_key(RUN, "config.json"), b"{}")
    manifests = [info.key for info in store.list(checkpoint_key(RUN, "manifest/"))]
    assert {6, 5, 2} <= {(parse_manifest_key(key) or (0, 0))[1] for key in manifests}


def objects(store: ObjectStore) -> dict[str, bytes]:
    """Of all checkpoints."""
    listed = [info.key for folder in ("data/", "manifest/") for info in store.list(checkpoint_key(RUN, folder))]
    return {key: store.get(key) for key in listed}


def restored(store: ObjectStore) -> tuple[str, int]:
    """The manifest of what the next start goes on from, and how many newer ones it skips."""
    tensors = state(99)
    found, skipped = restore(store, RUN, tensors)
    assert found is not None
    assert same(tensors, state(found.step)), "the tensors of that step"
    return found.key, len(skipped)


def damage(store: ObjectStore, manifest: str) -> None:
    store.put(data_key(manifest), b"damaged")


def steps(store: ObjectStore) -> list[int]:
    return [row["step"] for row in read_metrics(store, RUN) if "event" not in row]
