"""Checkpoints, the trainer's side: a snapshot into prepared memory, handed to the uploader; and the restore at start.

A snapshot's bytes are the file: safetensors layout (a length, a JSON header, raw tensors; no pickle). What follows the
copy happens in the uploader's process, in the order object, manifest, head.
"""

from __future__ import annotations

import json
import mmap
import os
import time
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.channel import Channel
from trainer.contract import HEAD_FILE, Head, LostRunError, UserError, checkpoint_key
from trainer.store import NotFoundError, ObjectStore, StoreError

FORMAT = 1
BEST_WAIT_SECONDS = 20.0
DTYPES = {
    torch.float64: "F64", torch.int64: "I64", torch.float32: "F32", torch.int32: "I32",
    torch.bfloat16: "BF16", torch.float16: "F16", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """Where each tensor stands in the file. Wide types first, so that every tensor is aligned."""

    header: bytes
    places: Mapping[str, tuple[int, int]]  # name -> first and last byte of the file
    bytes: int

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Layout:
        names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
        header: dict[str, Any] = {}
        position = 0
        for name in names:
            end = position + tensors[name].nbytes
            header[name] = {
                "dtype": DTYPES[tensors[name].dtype],
                "shape": list(tensors[name].shape),
                "data_offsets": [position, end],
            }
            position = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 64)
        start = 8 + len(text)
        places = {name: tuple(start + at for at in header[name]["data_offsets"]) for name in names}
        return cls(len(text).to_bytes(8, "little") + text, places, start + position)

    def views(self, buffer: mmap.mmap, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors over the file's bytes, shaped like the given ones; no copy."""
        return {
            name: torch.frombuffer(buffer, dtype=tensors[name].dtype, count=tensors[name].numel(), offset=start).view(
                tensors[name].shape
            )
            if tensors[name].numel()
            else torch.empty_like(tensors[name], device="cpu")
            for name, (start, _) in self.places.items()
        }


class Snapshot:
    """A file in memory that mirrors the training state. Every page is touched at once: the first save costs no more."""

    def __init__(self, layout: Layout, tensors: Mapping[str, Tensor]):
        self.fd = os.memfd_create("snapshot")
        os.truncate(self.fd, layout.bytes)
        self.buffer = mmap.mmap(self.fd, layout.bytes)
        self.buffer[: len(layout.header)] = layout.header
        self.views = layout.views(self.buffer, tensors)
        for view in self.views.values():
            view.zero_()
        self.in_flight = False


class Checkpointer:
    """Two snapshots, alternating. While both are on their way, a save is left out: training never waits for a store."""

    def __init__(self, tensors: Mapping[str, Tensor], channel: Channel | None, manifest: Mapping[str, Any]):
        """`manifest` holds what is the same for all checkpoints of an attempt: config, data, versions.

        Only the main process has a channel; in the others nothing is saved.
        """
        self.tensors, self.channel, self.manifest = tensors, channel, manifest
        self.layout = Layout.of(tensors)
        self.snapshots = [Snapshot(self.layout, tensors) for _ in range(2 if channel else 0)]
        self.saved_at, self.saved_step = time.monotonic(), -1
        self.committed = ""  # the newest manifest that the uploader has acknowledged
        self.lag_seconds = 0.0  # of the last acknowledged snapshot, until it was committed

    def is_due(self, every_seconds: float) -> bool:
        """Time to save, and a snapshot is free. Raises LostRunError when a later attempt owns the run."""
        self.poll()
        free = any(not snapshot.in_flight for snapshot in self.snapshots)
        return free and time.monotonic() >= self.saved_at + every_seconds

    def save(self, step: int, counters: Mapping[str, Any], *, is_best: bool) -> bool:
        """Copy the state and hand it over; False when both snapshots are still on their way.

        `counters` is all that is not a tensor, as JSON: scaler, best score. A new best is worth a short wait.
        """
        if self.channel is None:
            return False
        self.poll()
        if is_best:
            with suppress(StoreError):
                self._wait(time.monotonic() + BEST_WAIT_SECONDS, until_free=1)
        free = next((i for i, snapshot in enumerate(self.snapshots) if not snapshot.in_flight), None)
        if free is None:
            return False
        snapshot = self.snapshots[free]
        with torch.no_grad():
            views = snapshot.views
            torch._foreach_copy_([views[name] for name in views], [self.tensors[name] for name in views])
        manifest = {"format": FORMAT, "step": step, "time": time.time(), **self.manifest, "counters": counters}
        self.channel.send(
            {"op": "checkpoint", "buffer": free, "step": step, "bytes": self.layout.bytes, "is_best": is_best,
             "manifest": manifest},
            snapshot.fd,
        )  # fmt: skip
        snapshot.in_flight, self.saved_at, self.saved_step = True, time.monotonic(), step
        return True

    def poll(self) -> None:
        """Take the uploader's answers."""
        if self.channel is not None:
            for answer in self.channel.pending():
                self._take(answer)

    def save_last(self, step: int, counters: Mapping[str, Any], deadline: float, *, is_best: bool = False) -> None:
        """Save this step unless it is saved already, and wait until it is committed."""
        self._wait(deadline)
        if self.saved_step < step:
            self.save(step, counters, is_best=is_best)
            self._wait(deadline)

    def _wait(self, deadline: float, until_free: int = 2) -> None:
        """Until so many snapshots are free. Raises StoreError past the deadline (monotonic seconds)."""
        while self.channel is not None and sum(not s.in_flight for s in self.snapshots) < until_free:
            try:
                received = self.channel.receive(timeout=max(0.01, deadline - time.monotonic()))
            except TimeoutError as error:
                raise StoreError("the last checkpoint did not reach the store in time") from error
            if received is None:
                raise StoreError("the uploader is gone, and the last checkpoint with it")
            self._take(received[0])

    def _take(self, answer: Mapping[str, Any]) -> None:
        self.snapshots[answer["buffer"]].in_flight = False
        if "committed" in answer:
            self.committed, self.lag_seconds = answer["committed"], answer["seconds"]
        if "lost" in answer:
            raise LostRunError(answer["lost"])


@dataclass(frozen=True)
class Restored:
    """What a checkpoint held beside its tensors."""

    key: str
    manifest: Mapping[str, Any]

    @property
    def step(self) -> int:
        return int(self.manifest["step"])

    @property
    def counters(self) -> Mapping[str, Any]:
        counters: Mapping[str, Any] = self.manifest["counters"]
        return counters


def read_head(store: ObjectStore, run_id: str) -> Head | None:
    """The run's head, or None where the store says that there is none. A failing store raises StoreError."""
    try:
        return Head.from_json(store.get(checkpoint_key(run_id, HEAD_FILE)))
    except NotFoundError:
        return None


def restore(store: ObjectStore, run_id: str, tensors: Mapping[str, Tensor]) -> tuple[Restored | None, list[str]]:
    """Load the newest checkpoint whose bytes verify, else the one before it; and say what was skipped and why.

    The tensors are touched only after the checksum was right. None: the run has no checkpoint yet. UserError when it
    has some, but none that can be used, or when they are of another model.
    """
    head = read_head(store, run_id)
    candidates = [key for key in (head.newest, head.previous) if key] if head else []
    skipped: list[str] = []
    for key in candidates:
        try:
            manifest = json.loads(store.get(key))
            load_verified(store, manifest, tensors)
        except (NotFoundError, DamagedError, json.JSONDecodeError) as error:
            skipped.append(f"{store.describe(key)}: {error}")
        else:
            return Restored(key, manifest), skipped
    if candidates:
        raise UserError(
            f"run {run_id!r} has checkpoints, but none can be used ({'; '.join(skipped)}): "
            "restore the objects, or start a new run (RUN=another-name)"
        )
    return None, skipped


class DamagedError(Exception):
    """A checkpoint's bytes are not those that were saved."""


def load_verified(store: ObjectStore, manifest: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    if manifest["format"] != FORMAT:
        raise UserError(
            f"the checkpoint has format {manifest['format']}, and this trainer reads {FORMAT}: "
            "use the version that wrote it"
        )
    expected, found = Layout.of(tensors), manifest["object"]
    buffer = mmap.mmap(-1, found["bytes"])
    size = store.head(found["key"]).bytes
    if size != found["bytes"]:
        raise DamagedError(f"{size} bytes instead of {found['bytes']}")
    with memoryview(buffer) as bytes_of_file:
        store.read_into(found["key"], bytes_of_file)
        if zlib.crc32(bytes_of_file) != found["crc32"]:
            raise DamagedError("its checksum is wrong")
    if buffer[: len(expected.header)] != expected.header:
        raise UserError(
            f"checkpoint {found['key']} is of another model: its tensors differ from this config's; "
            "start a new run (RUN=another-name)"
        )
    views = expected.views(buffer, tensors)
    with torch.no_grad():
        torch._foreach_copy_([tensors[name] for name in views], [views[name] for name in views])
