"""Saves beside a training, through the product's Checkpointer: what they take from it, and whether they are torn.

The uploader is played here: it commits at once what it is given.
"""

from __future__ import annotations

import itertools
import os
import socket
import statistics
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.measure import Found, Place
from benchmarks.gpu.steps import Ours, config_of, ours
from trainer.checkpoint.restore import tensors_of
from trainer.checkpoint.saver import Checkpointer
from trainer.process.channel import Channel
from trainer.process.snapshot import Snapshot

STEPS, EVERY = 100, 10
TORN_SAVES, SECOND_SAVES, TORN_BATCH = 200, 2, 64


class Uploader:
    """The other end of the channel."""

    def __init__(self) -> None:
        ours_end, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours_end, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, Channel.MESSAGE_BYTES * 4)
        self.trainers, self.mine = Channel(ours_end), Channel(theirs)
        self.snapshots: dict[int, tuple[Snapshot, Mapping[str, Tensor]]] = {}  # by inode

    def take(self, timeout: float = 0) -> tuple[int, Mapping[str, Tensor]] | None:
        """The step and the tensors of the next save, committed; None if none has come."""
        with suppress(BlockingIOError, TimeoutError):
            message, fd = self.mine.receive(timeout=timeout)
            assert fd is not None
            snapshot, views = self._opened(fd)
            self.mine.send({"seq": message["seq"], "step": snapshot.note["step"], "committed": "x"})
            return snapshot.note["step"], views
        return None

    def _opened(self, fd: int) -> tuple[Snapshot, Mapping[str, Tensor]]:
        if (inode := os.fstat(fd).st_ino) in self.snapshots:
            os.close(fd)
        else:
            snapshot = Snapshot(fd)
            self.snapshots[inode] = snapshot, tensors_of(snapshot.body)
        return self.snapshots[inode]


class Saving:
    """A training with the product's Checkpointer, as `trainer.setup` puts them together."""

    def __init__(self, place: Place, batch: int = 0):
        self.place, self.uploader = place, Uploader()
        self.training: Ours = ours(place, config_of(place, batch=batch))
        began = time.perf_counter()
        self.saver = self.checkpointer()
        self.seconds = time.perf_counter() - began

    def checkpointer(self) -> Checkpointer:
        return Checkpointer(self.tensors(), self.uploader.trainers, {"config": {}})

    def tensors(self) -> dict[str, Tensor]:
        return self.training.state.tensors()


class Marks:
    """Instants on the GPU's own clock; on a CPU on the wall's."""

    def __init__(self, place: Place):
        self.place = place
        self.all: list[Any] = []

    def add(self) -> None:
        if not self.place.on_gpu:
            self.all.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        self.all.append(event)

    def milliseconds(self) -> list[float]:
        """Between each and the next."""
        self.place.drain()
        pairs = itertools.pairwise(self.all)
        return [one.elapsed_time(two) if self.place.on_gpu else (two - one) * 1e3 for one, two in pairs]


def disturbance(place: Place) -> Found:
    """Steps with a save after every tenth: how long the step of a save takes, and the one after, against the others."""
    saving, marks, blocked, refused = Saving(place), Marks(place), list[float](), 0
    with closing(saving.saver):
        for _ in range(2 if place.tiny else 6):
            saving.training.step()
        for number in range(12 if place.tiny else STEPS):
            marks.add()
            saving.training.step()
            saving.saver.poll()
            saving.uploader.take()
            if number % EVERY == EVERY // 2:
                began = time.perf_counter()
                refused += not saving.saver.save(saving.training.state.step, {})
                blocked.append(time.perf_counter() - began)
        marks.add()
        took = marks.milliseconds()
    if refused:
        raise AssertionError(f"{refused} of {len(blocked)} saves were not taken, so their steps tell nothing")
    at = range(EVERY // 2, len(took) - 1, EVERY)
    usual = statistics.median(ms for i, ms in enumerate(took) if i % EVERY not in {EVERY // 2 + i for i in range(3)})
    return {
        "create_and_pin_s": round(saving.seconds, 3), "bytes": saving.saver.bytes, "tensors": len(saving.tensors()),
        "step_ms": round(usual, 3),
        "step_of_save_times": round(statistics.median(took[i] for i in at) / usual, 4),
        "step_after_save_times": round(statistics.median(took[i + 1] for i in at) / usual, 4),
        "most_after": round(max(took[i + 1] for i in at) / usual, 4),
        "save_blocks_ms": round(statistics.median(blocked) * 1e3, 2),
        "save_blocks_most_ms": round(max(blocked) * 1e3, 2),
        "saves": len(blocked),
    }  # fmt: skip


def torn(place: Place) -> Found:
    """At every save the tensors are also cloned on the training's stream, and compared with the bytes of the snapshot.

    Then the Checkpointer is closed, and a second one of the same process saves, too.
    """
    saves = 3 if place.tiny else TORN_SAVES
    saving = Saving(place, batch=min(place.batch, TORN_BATCH))
    for _ in range(3):
        saving.training.step()
    with closing(saving.saver):
        found = _compare(saving, saving.saver, saves)
    with closing(saving.checkpointer()) as second:
        found["second_checkpointer"] = _compare(saving, second, SECOND_SAVES)
    torch.zeros(8, device=place.device).add_(1)
    place.drain()
    if wrong := found["torn_saves"] or found["second_checkpointer"]["torn_saves"]:
        raise AssertionError(f"{wrong} saves are torn: {found}")
    for one, asked in ((found, saves), (found["second_checkpointer"], SECOND_SAVES)):
        if one["saves"] != asked:
            raise AssertionError(f"{one['saves']} of {asked} saves were taken and compared: {found}")
    return found


def _compare(saving: Saving, saver: Checkpointer, saves: int) -> Found:
    found: Found = {"saves": 0, "torn_saves": 0, "torn_tensors": 0, "left_out": 0}
    for _ in range(saves):
        saving.training.step()
        step, expected = saving.training.state.step, {name: one.clone() for name, one in saving.tensors().items()}
        if not saver.save(step, {}):
            found["left_out"] += 1
            continue
        saving.training.step()
        saving.place.drain()
        saver.poll()
        saved = saving.uploader.take(timeout=20)
        assert saved is not None, f"the save of step {step} never came"
        assert saved[0] == step, f"the save of step {step} says that it is of step {saved[0]}"
        wrong = [name for name, tensor in expected.items() if not torch.equal(saved[1][name].to(tensor.device), tensor)]
        found["saves"] += 1
        found["torn_saves"] += bool(wrong)
        found["torn_tensors"] += len(wrong)
        if wrong:
            found.setdefault("first", wrong[:3])
    return found
