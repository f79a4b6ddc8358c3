"""Checkpoints for the tests: states of a toy model, committed by the code that the uploader runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import boto3
import torch
from torch import Tensor

from trainer.checkpoint.layout import CHECKPOINT_FORMAT, Layout
from trainer.contract import HEAD_FILE, Lease, checkpoint_key
from trainer.process.snapshot import Snapshot
from trainer.store import ObjectStore
from trainer.store.checksum import Checksums
from trainer.upload.commit import Commit
from trainer.upload.owner import MachineLock, Ownership

RUN = "job"


def state(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {
        "model.conv.weight": torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last),
        "model.cube.weight": torch.randn(3, 3, 3, 3).to(memory_format=torch.channels_last),
        "model.bn.num_batches_tracked": torch.tensor(seed),
        "model.bn.half": torch.randn(5).to(torch.bfloat16),
        "model.flag": torch.tensor([True, False, True]),
        "model.empty": torch.empty(0, 3),
        "ema.conv.weight": torch.randn(2, 3),
    }


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def file_of(tensors: dict[str, Tensor], blur: str = "") -> memoryview:
    """The bytes of a checkpoint."""
    layout = Layout.of(tensors, blur)
    snapshot = Snapshot.create(layout.bytes)
    snapshot.body[: len(layout.header)] = layout.header
    for name, view in layout.views(torch.frombuffer(snapshot.body, dtype=torch.uint8), tensors).items():
        tensor = tensors[name]
        view.copy_(tensor if tensor.is_contiguous() else tensor.permute(0, 2, 3, 1))
    return snapshot.body


def note(step: int, attempt: int = 1, **changes: Any) -> dict[str, Any]:
    """What a trainer says of a checkpoint."""
    manifest = {
        "format": CHECKPOINT_FORMAT, "step": step, "time": 0.0, "run_id": RUN, "attempt": attempt, "config": {},
        "config_hash": "", "data": {}, "versions": {}, "counters": {"n": step},
    }  # fmt: skip
    return {"seq": step, "step": step, "is_best": False, "manifest": manifest | changes}


def owner(store: ObjectStore, attempt: int, machine: Path, lease_seconds: float = 60) -> Ownership:
    """An attempt on some machine, which does not own the run yet."""
    return Ownership(store, RUN, attempt, lease_seconds, MachineLock(machine / "uploader.lock"))


@contextmanager
def owning(store: ObjectStore, attempt: int, machine: Path) -> Iterator[Ownership]:
    """An attempt that owns the run, and ends cleanly."""
    ownership = owner(store, attempt, machine)
    ownership.claim(print, lambda before: None)
    yield ownership
    ownership.release()


def store_checkpoint(store: ObjectStore, attempt: int, said: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """Object and manifest, without HEAD.json; returns the manifest's key."""
    return send(store, attempt, said, tensors, {}).key


def send(
    store: ObjectStore, attempt: int, said: dict[str, Any], tensors: dict[str, Tensor], parent: dict[str, str]
) -> Commit:
    body = file_of(tensors)
    commit = Commit.of(RUN, attempt, said["manifest"], Checksums.of(body), parent)
    commit.put(store, body)
    return commit


def commit(
    ownership: Ownership, step: int, tensors: dict[str, Tensor], *, is_best: bool = False, **changes: Any
) -> str:
    """Object, manifest, HEAD.json; the superseded ones are retired. Returns the manifest's key."""
    said = note(step, ownership.attempt, **changes)
    sent = send(ownership.store, ownership.attempt, said, tensors, ownership.parent_of(step))
    for manifest in ownership.commit(sent.key, sent.sha256, is_best=is_best):
        ownership.store.retire(manifest)
        ownership.store.retire(manifest.replace("/manifest/", "/data/").replace(".json", ".safetensors"))
    return sent.key


def read_lease(store: ObjectStore) -> Lease:
    return Lease.from_json(store.get(checkpoint_key(RUN, HEAD_FILE)))


def object_key(store: ObjectStore, manifest: str) -> str:
    return str(json.loads(store.get(manifest))["object"]["key"])


def names(store: ObjectStore, prefix: str) -> list[str]:
    return [info.key.rsplit("/", 1)[1] for info in store.list(checkpoint_key(RUN, prefix))]


def is_retired(store: ObjectStore, key: str) -> bool:
    """Marked for the lifecycle (S3), or gone (directory)."""
    if not store.uri.startswith("s3://"):
        return key not in [info.key for info in store.list(key)]
    bucket, _, prefix = store.uri.removeprefix("s3://").partition("/")
    with closing(boto3.client("s3")) as client:
        tags = client.get_object_tagging(Bucket=bucket, Key=f"{prefix}/{key}")["TagSet"]
    return {"Key": "superseded", "Value": "true"} in tags
