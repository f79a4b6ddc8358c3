"""The half for a GPU: what a save takes from a training on it, whether its copies are ever torn, and what bitwise
reproducible kernels cost."""

from __future__ import annotations

import itertools
import os
import socket
import statistics
import time
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from benchmarks.checkpoint_peers import MANIFEST, Ours
from benchmarks.limits import Limit
from trainer.checkpoint.restore import tensors_of
from trainer.checkpoint.saver import Checkpointer
from trainer.learning.average import Average
from trainer.learning.optimizer import make_optimizer
from trainer.learning.state import state_tensors
from trainer.process.channel import Channel
from trainer.process.snapshot import Snapshot
from trainer.recipes.config import OptimConfig

BATCH = 64
STEPS, EVERY = 600, 30  # a save after every so many
TORN_SAVES = 1000
WARM_STEPS = 20
MODE_STEPS, MODE_ROUNDS = 30, 5


class Training:
    """ResNet-50 in bfloat16 on one batch of noise, with an average, stepped as the trainer steps."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = torchvision.models.resnet50().cuda().to(memory_format=torch.channels_last)
        self.average, self.optimizer = Average(self.model), make_optimizer(self.model, OptimConfig())
        self.images = torch.randn(BATCH, 3, 224, 224, device="cuda").to(memory_format=torch.channels_last)
        self.labels, self.number = torch.randint(1000, (BATCH,), device="cuda"), 0
        self.tensors = state_tensors(self.model, self.average, self.optimizer)

    def step(self) -> None:
        self.number += 1
        with torch.autocast("cuda", torch.bfloat16):
            logits = self.model(self.images)
        nn.functional.cross_entropy(logits.float(), self.labels).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update(0.999)


def mark() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def saves_in_training() -> dict[str, Any]:
    """Steps by the GPU's own clock: the one that follows a save against the median of the other ones around it."""
    training = Training()
    saver = Ours(training.tensors)
    blocked, marks = [], []
    for number in range(WARM_STEPS + STEPS):
        training.step()
        marks.append(mark())
        saver.checkpointer.poll()
        if number >= WARM_STEPS and number % EVERY == 0:
            begin = time.perf_counter()
            saver.save(number)
            blocked.append(time.perf_counter() - begin)
    torch.cuda.synchronize()
    saver.close()
    seconds = [a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(marks)]  # [i]: of step i + 1
    after = [i for i in range(WARM_STEPS, len(seconds)) if i % EVERY == 0]
    near = EVERY // 3
    times = [seconds[i] / statistics.median(seconds[i - near : i] + seconds[i + 1 : i + near]) for i in after]
    return {
        "step_ms": round(statistics.median(seconds[WARM_STEPS:]) * 1e3, 2),
        "step_with_save_times": {"median": round(statistics.median(times), 4), "most": round(max(times), 4)},
        "processor_blocked_ms": {
            "median": round(statistics.median(blocked) * 1e3, 3),
            "most": round(max(blocked) * 1e3, 3),
        },
        "saves": len(times),
    }


def torn() -> dict[str, int]:
    """Every tensor holds the number of its step, and gets the next one right behind a save, before the copy to the
    host can be done: a save in which one holds another number is torn. The uploader is played here."""
    training = Training()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    uploader = Channel(theirs)
    checkpointer = Checkpointer(training.tensors, Channel(ours), MANIFEST)
    snapshots: dict[int, tuple[Snapshot, dict[str, Tensor]]] = {}
    found = {"saves": 0, "torn_saves": 0, "torn_tensors": 0}
    for step in range(TORN_SAVES):
        training.model(training.images)  # so that the GPU is behind
        for tensor in training.tensors.values():
            tensor.fill_(step)
        assert checkpointer.save(step, {}), "a save was left out"
        for tensor in training.tensors.values():
            tensor.fill_(step + 1)
        torch.cuda.synchronize()
        checkpointer.poll()
        _, fd = uploader.receive(timeout=10)
        assert fd is not None
        if (inode := os.fstat(fd).st_ino) in snapshots:
            os.close(fd)
        else:
            snapshot = Snapshot(fd)
            snapshots[inode] = snapshot, tensors_of(snapshot.body)
        snapshot, views = snapshots[inode]
        assert snapshot.lock(wait=False)
        wrong = sum(not bool((view == snapshot.note["step"]).all()) for view in views.values())
        uploader.send({"seq": snapshot.note["seq"], "step": step, "committed": str(step)})
        snapshot.unlock()
        found["saves"] += snapshot.note["step"] == step
        found["torn_saves"] += wrong > 0
        found["torn_tensors"] += wrong
    checkpointer.close()
    return found


def deterministic_times() -> float:
    """A step with bitwise reproducible kernels over one without: the median of interleaved rounds."""
    training = Training()

    def seconds(deterministic: bool) -> float:
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cudnn.benchmark = not deterministic
        for _ in range(WARM_STEPS):
            training.step()
        begin = mark()
        for _ in range(MODE_STEPS):
            training.step()
        end = mark()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end)) / MODE_STEPS / 1e3

    times = [seconds(True) / seconds(False) for _ in range(MODE_ROUNDS)]
    torch.use_deterministic_algorithms(False)
    return round(statistics.median(times), 3)


def measure() -> dict[str, Any]:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, at the first product of matrices
    torch.backends.cudnn.benchmark = True
    return {
        "training": saves_in_training(), "torn": torn(), "deterministic_step_times": deterministic_times(),
        "batch": BATCH,
    }  # fmt: skip


def limits(results: dict[str, Any] | None) -> list[Limit]:
    if results is None:
        return []
    return [
        Limit("GPU: torn saves", results["torn"]["torn_saves"], most=0),
        Limit("GPU: saves that were looked at", results["torn"]["saves"], least=TORN_SAVES),
    ]
