"""Saves checkpoints: copies the state into prepared memory, a snapshot, and hands that to the uploader's process.

The bytes of a snapshot are those of the file: safetensors layout (a length, a JSON header, raw tensors; no pickle). The
uploader then stores the object, the manifest and HEAD.json, in this order. `restore` reads checkpoints.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from trainer.checkpoint.layout import BLUR_POOL, CHECKPOINT_FORMAT, Layout, in_memory_order
from trainer.contract import LostRunError
from trainer.process.channel import Channel
from trainer.process.snapshot import VOID, Snapshot
from trainer.store import StoreError
from trainer.text import say

COPY_SECONDS = 10.0  # a copy of 307 MB to the host takes 6 ms


def side_stream(tensors: Mapping[str, Tensor]) -> Any:
    """A stream of the tensors' GPU beside the training's; None for tensors in the host's memory."""
    device = next(iter(tensors.values())).device
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]


def flat_by_type(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Contiguous tensors as (elements,) views, in one list for each type: a single kernel copies such a list."""
    lists = defaultdict[torch.dtype, list[Tensor]](list)
    for tensor in tensors:
        lists[tensor.dtype].append(tensor.view(-1))
    return list(lists.values())


class Copier:
    """Copies tensors into snapshots.

    On a GPU the training's stream copies them into a buffer beside them, which takes less than a millisecond, and the
    steps after it may change them. A stream of its own then brings the buffer into the pinned memory of the snapshot.
    """

    def __init__(self, tensors: Mapping[str, Tensor], layout: Layout, snapshots: Sequence[Snapshot]):
        self.header_bytes = len(layout.header)
        self.sources = flat_by_type(in_memory_order(tensors[name]) for name in layout.places)
        self.bodies = [torch.frombuffer(snapshot.body, dtype=torch.uint8) for snapshot in snapshots]
        self.stream = side_stream(tensors) if snapshots else None
        self.done: Any = torch.cuda.Event() if self.stream is not None else None  # type: ignore[no-untyped-call]
        self.pinned: list[int] = []  # addresses
        buffers = self.bodies
        if self.stream is not None:
            for snapshot in snapshots:
                self._pin(snapshot)
            lead = -self.header_bytes % 16  # so that tensors are aligned to the 16 bytes that a thread copies at once
            like = next(iter(tensors.values()))
            self.buffer = like.new_empty(lead + layout.bytes, dtype=torch.uint8)[lead:]
            buffers = [self.buffer] * len(snapshots)
        self.targets = [flat_by_type(layout.views(buffer, tensors).values()) for buffer in buffers]

    def _pin(self, snapshot: Snapshot) -> None:
        """Lock the pages of a snapshot for the GPU's copy engine. Where that is refused, copies only take longer."""
        address = torch.frombuffer(snapshot.memory, dtype=torch.uint8).data_ptr()
        cudart: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        if refusal := int(cudart.cudaHostRegister(address, len(snapshot.memory), 0)):
            say(f"the memory of checkpoints cannot be pinned (CUDA error {refusal}): saving is slower")
            with suppress(RuntimeError):  # the refusal stays behind as the error of the next launch
                torch.zeros(1, device="cuda")
        else:
            self.pinned.append(address)

    def close(self) -> None:
        """Unlock the pages after the copy: the kernel may give their addresses to the next snapshots.

        A GPU that does not finish the copy in time keeps them, so that an error never waits for it.
        """
        give_up = time.monotonic() + COPY_SECONDS
        with suppress(RuntimeError):  # a GPU that has failed takes its copies with it
            while not self.is_done():
                if time.monotonic() > give_up:
                    return
                time.sleep(0.001)
        cudart: Any = torch.cuda.cudart() if self.pinned else None  # type: ignore[no-untyped-call]
        while self.pinned:
            cudart.cudaHostUnregister(self.pinned.pop())

    @torch.no_grad()
    def start(self, i: int) -> None:
        """Begin the copy into snapshot `i`; on a CPU it is finished on return. The tensors may change at once.

        The copy before must be done: there is one buffer, and a copy into it would tear what still leaves it.
        """
        assert self.is_done(), "a copy into the buffer from which the one before is still read"
        for targets, sources in zip(self.targets[i], self.sources, strict=True):
            torch._foreach_copy_(targets, sources)
        if self.stream is None:
            return
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            self.bodies[i][self.header_bytes :].copy_(self.buffer[self.header_bytes :], non_blocking=True)
            self.done.record()

    def is_done(self, *, wait: bool = False) -> bool:
        if self.done is not None and wait:
            self.done.synchronize()
        return self.done is None or bool(self.done.query())


def do_nothing() -> None:
    """Nothing comes before a checkpoint."""


class Checkpointer:
    """Saves into two snapshots. While one is sent, newer saves use the other: training never waits for the store."""

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        channel: Channel | None,
        manifest: Mapping[str, Any],
        *,
        restored: tuple[int, str, Mapping[str, Any]] = (-1, "", {}),
        restored_sha256: str = "",
    ):
        """`manifest` has what is the same in all checkpoints of an attempt: config, data, versions. `restored` is the
        step, the manifest's key and the counters of the checkpoint that the state came from, and `restored_sha256` is
        of its manifest.

        Only the main process has a channel. The others save nothing.
        """
        self.channel, self.manifest = channel, manifest
        layout = Layout.of(tensors, manifest.get("config", {}).get("model", {}).get(BLUR_POOL, ""))
        self.bytes = layout.bytes  # of one checkpoint
        self.snapshots = [Snapshot.create(layout.bytes) for _ in range(2 if channel else 0)]
        for snapshot in self.snapshots:
            snapshot.body[: len(layout.header)] = layout.header
        self.copier = Copier(tensors, layout, self.snapshots)
        self.seq = 0
        self.notes: list[dict[str, Any]] = [VOID for _ in self.snapshots]  # the last save in each snapshot
        self.copied_to: int | None = None  # the snapshot of a save that is not handed over yet
        self.before_sending = do_nothing
        self.waiting: dict[int, float] = {}  # seq of each save that is not committed yet -> when it was copied
        self.saved_at, self.saved_step, self.committed = time.monotonic(), *restored[:2]
        self.committed_sha256, self.restored_counters = restored_sha256, restored[2]
        self.last_lag = 0.0
        self.stall_seconds = 0.0  # see take_stall_seconds

    @contextmanager
    def _stalling(self) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.stall_seconds += time.monotonic() - began

    def take_stall_seconds(self) -> float:
        """How long saves have held the training thread since the last call: copies, and waits for copies."""
        taken, self.stall_seconds = self.stall_seconds, 0.0
        return taken

    @property
    def lag_seconds(self) -> float:
        """Seconds from a copy to its commit: so far, for the oldest that is not committed, else for the last one."""
        return time.monotonic() - min(self.waiting.values()) if self.waiting else self.last_lag

    def is_due(self, every_seconds: float) -> bool:
        """Whether it is time to save. Raises LostRunError if the run is lost, DisconnectedError without an uploader."""
        self.poll()
        return self.channel is not None and time.monotonic() >= self.saved_at + every_seconds

    def save(
        self,
        step: int,
        counters: Mapping[str, Any],
        *,
        is_best: bool = False,
        before_sending: Callable[[], None] = do_nothing,
    ) -> bool:
        """Begin to copy the state, once for each step. Does not wait for the store.

        Waits for the copy of the save before, which is done since long unless saves follow each other at once. Waits
        for its own copy on a CPU, and where the memory of snapshots could not be pinned.

        When the copy is done, on a CPU at once, else at a later `poll`, `before_sending` is called, and then the
        uploader gets it. An error of `before_sending` keeps it back.

        Returns False if both snapshots are taken: one is being sent, and the other waits with the best weights.
        `counters` is the part of the state that is not tensors, as JSON: the scaler, the best score.
        """
        self.poll()
        if self.channel is None:
            return False
        if step == self.saved_step and (self.seq or counters == self.restored_counters):
            return True
        with self._stalling():
            return self._begin(step, counters, is_best, before_sending)

    def _begin(self, step: int, counters: Mapping[str, Any], is_best: bool, before_sending: Callable[[], None]) -> bool:
        self._hand_over(wait=True)  # of the save before
        if (free := self._take_snapshot(is_best)) is None:
            self.saved_at = time.monotonic()  # wait as long again, not one step
            return False
        snapshot, self.seq = self.snapshots[free], self.seq + 1
        self.waiting.pop(self.notes[free]["seq"], None)
        snapshot.note = VOID
        self.copier.start(free)
        manifest = {
            **self.manifest,
            "format": CHECKPOINT_FORMAT,
            "step": step,
            "time": time.time(),
            "counters": counters,
        }
        self.notes[free] = {"seq": self.seq, "step": step, "is_best": is_best, "manifest": manifest}
        self.copied_to, self.before_sending = free, before_sending
        self.waiting[self.seq] = self.saved_at = time.monotonic()
        self.saved_step = step
        self._hand_over()
        return True

    def close(self) -> None:
        """Give pinned memory back. What was handed over stays with the uploader."""
        self.copier.close()

    def _take_snapshot(self, is_best: bool) -> int | None:
        """Lock a snapshot for writing: a free one, else one that waits and that the newer save replaces."""
        by_age = sorted(range(len(self.snapshots)), key=lambda i: (self._is_waiting(i), self.notes[i]["seq"]))
        for i in by_age:
            replaceable = is_best or not (self._is_waiting(i) and self.notes[i]["is_best"])
            if replaceable and self.snapshots[i].lock(wait=False):
                return i
        return None

    def _is_waiting(self, i: int) -> bool:
        return self.notes[i]["seq"] in self.waiting

    def _hand_over(self, *, wait: bool = False) -> None:
        """Send the snapshot whose copy is complete, after what comes before that."""
        if self.channel is None or self.copied_to is None or not self.copier.is_done(wait=wait):
            return
        self.before_sending()
        snapshot, note = self.snapshots[self.copied_to], self.notes[self.copied_to]
        snapshot.note = note
        self.channel.send({"op": "checkpoint", "seq": note["seq"]}, snapshot.fd)
        snapshot.unlock()
        self.copied_to = None

    def poll(self, *, wait: bool = False) -> None:
        """Hand over a save whose copy is done, or wait for that; and read the uploader's answers."""
        if self.channel is None:
            return
        with self._stalling():
            self._hand_over(wait=wait)
        for answer in self.channel.pending():
            self._take_answer(answer)

    def save_last(self, step: int, counters: Mapping[str, Any], deadline: Callable[[], float]) -> None:
        """Save this step unless it is saved already, and wait until it is committed.

        `deadline` returns monotonic seconds and is asked again and again. Raises StoreError past it, LostRunError.
        """
        while self.channel is not None:
            is_saved = self.save(step, counters)
            self._hand_over(wait=True)
            if is_saved and self.seq not in self.waiting:
                return
            left = deadline() - time.monotonic()
            if left <= 0:
                raise StoreError("the last checkpoint did not reach the store in time")
            with suppress(TimeoutError):
                self._take_answer(self.channel.receive(timeout=min(0.2, left))[0])

    def _take_answer(self, answer: Mapping[str, Any]) -> None:
        if "lost" in answer:
            raise LostRunError(answer["lost"])
        copied = self.waiting.pop(answer["seq"], None)
        if "committed" in answer:
            self.committed, self.committed_sha256 = answer["committed"], answer.get("sha256", "")
            self.last_lag = time.monotonic() - copied if copied is not None else self.last_lag
        else:
            raise StoreError(f"the checkpoint of step {answer['step']} did not reach the store in time")
