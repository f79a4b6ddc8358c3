"""A training process that saves by one method, driven from outside over a pipe: one command, one answer."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

MEMCPY_TIMES = 3  # before each save; the median counts
STEP_SECONDS = 1.3e-3  # of the synthetic training step
SETTLED_SECONDS = 0.3  # between a save in the store and the next one: the store's own epilogue
SAMPLE_SECONDS = 0.01
IDLE_SECONDS = 1.0
LONGEST_SAVE_SECONDS = 120.0


def training_state() -> dict[str, Any]:
    """ResNet-50 with its momentum and its average: what a checkpoint of ours holds."""
    import torch
    import torchvision

    from trainer.learning.average import Average
    from trainer.learning.state import state_tensors

    torch.manual_seed(0)
    model = torchvision.models.resnet50()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for parameter in model.parameters():
        optimizer.state[parameter]["momentum_buffer"] = torch.randn_like(parameter)
    return state_tensors(model, Average(model), optimizer)


class Memcpy:
    """All tensors, one after the other, into memory that is there; and the same bytes as one piece."""

    def __init__(self, state: dict[str, Any]):
        import torch

        self.sources = [tensor.detach() for tensor in state.values()]
        self.bytes = sum(tensor.nbytes for tensor in self.sources)
        room = self.bytes + 8 * len(self.sources)
        self.flat = torch.ones(room, dtype=torch.uint8)
        self.other = torch.ones(self.bytes, dtype=torch.uint8)
        self.targets, at = [], 0
        for tensor in self.sources:
            piece = self.flat[at : at + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            self.targets.append(piece)
            at += -(-tensor.nbytes // 8) * 8

    def seconds(self) -> tuple[float, float]:
        """Tensor by tensor, and in one piece."""
        import torch

        found = []
        for _ in range(MEMCPY_TIMES):
            begin = time.perf_counter()
            torch._foreach_copy_(self.targets, self.sources)
            middle = time.perf_counter()
            self.flat[: self.bytes].copy_(self.other)
            found.append((middle - begin, time.perf_counter() - middle))
        pieces, whole = zip(*found, strict=True)
        return statistics.median(pieces), statistics.median(whole)


def make_step() -> Callable[[], None]:
    """What a training loop does between two kernels: Python, small operators of torch, NumPy. In one thread."""
    import numpy as np
    import torch

    small, image = torch.randn(2048), np.ones(16384, dtype=np.float32)

    def unit() -> None:
        sum(i * i % 7 for i in range(300))
        for _ in range(10):
            torch.add(small, small)
        np.tanh(image)

    quickest = STEP_SECONDS
    for _ in range(100):  # the quickest: neighbours on the machine do not make the steps shorter
        begin = time.perf_counter()
        unit()
        quickest = min(quickest, time.perf_counter() - begin)
    count = round(STEP_SECONDS / quickest)

    def step() -> None:
        for _ in range(count):
            unit()

    return step


def waited() -> tuple[float, float]:
    """Seconds that this thread has run, and that it was ready to but had no processor."""
    ran, ready, _ = Path("/proc/thread-self/schedstat").read_text().split()
    return int(ran) / 1e9, int(ready) / 1e9


def steps_until(done: Callable[[], bool]) -> dict[str, Any]:
    """Steps, and how long this thread neither ran nor was ready to run: it never waits for anything but the
    interpreter's lock."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    step, seconds = make_step(), []
    (ran, ready), begin = waited(), time.perf_counter()
    while not done():
        before = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - before)
    wall = time.perf_counter() - begin
    (ran_at_end, ready_at_end) = waited()
    torch.set_num_threads(threads)
    return {
        "wall": wall,
        "lock_wait": max(0.0, wall - (ran_at_end - ran) - (ready_at_end - ready)),
        "processor_wait": ready_at_end - ready,
        "steps": sorted(seconds),
    }


def is_past(seconds: float) -> bool:
    return time.perf_counter() > seconds


def in_time(done: Callable[[], bool]) -> Callable[[], bool]:
    """The same question, which is not asked for ever."""
    end = time.perf_counter() + LONGEST_SAVE_SECONDS

    def ask() -> bool:
        if is_past(end):
            raise TimeoutError(f"not saved after {LONGEST_SAVE_SECONDS:.0f} s")
        return done()

    return ask


def serve(pipe: Connection, name: str) -> None:
    """Commands: build, save, steps, idle, close."""
    from benchmarks.checkpoint_peers import SAVERS

    state = training_state()
    memcpy, number, saver = Memcpy(state), 0, None
    memcpy.seconds()
    pipe.send(memcpy.bytes)
    while (command := pipe.recv()) != "close":
        if command == "build":
            saver = SAVERS[name](state)
            pipe.send(saver.processes)
        elif command == "idle":
            end = time.perf_counter() + IDLE_SECONDS
            pipe.send(steps_until(partial(is_past, end)))
        else:
            assert saver is not None
            number += 1
            pieces, whole = memcpy.seconds()
            begin = time.perf_counter()
            saver.save(number)
            blocked = time.perf_counter() - begin
            is_stored = in_time(saver.done)
            if command == "steps":
                pipe.send(None if is_stored() else steps_until(is_stored))
                continue
            while not is_stored():
                time.sleep(0.005)
            stored = time.perf_counter() - begin
            time.sleep(SETTLED_SECONDS)
            pipe.send({"memcpy": pieces, "memcpy_whole": whole, "blocked": blocked, "stored": stored})
    if saver is not None:
        saver.close()


def send_files(pipe: Connection, size: str) -> None:
    """boto3's `upload_file` of so many bytes at each "upload"; answers with its seconds of the processor."""
    import boto3

    from benchmarks.checkpoint_peers import BUCKET

    fd, bytes_of_file = os.memfd_create("file"), int(size)
    os.truncate(fd, bytes_of_file)
    with mmap.mmap(fd, bytes_of_file) as file:
        file[:] = os.urandom(1 << 20) * (bytes_of_file >> 20) + bytes(bytes_of_file & ((1 << 20) - 1))
    client = boto3.session.Session().client("s3")
    pipe.send(None)
    while pipe.recv() != "close":
        begin = time.process_time()
        client.upload_file(f"/proc/self/fd/{fd}", BUCKET, "file")
        pipe.send(time.process_time() - begin)


def quietly(target: Callable[..., None], pipe: Connection, argument: str, log: str) -> None:
    """What it says on standard error goes to a file: DCP's process tells of each of its steps."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    target(pipe, argument)


class Worker:
    def __init__(self, target: Callable[..., None], argument: str, log: str):
        context = multiprocessing.get_context("spawn")
        self.pipe, end = context.Pipe()
        self.process = context.Process(target=quietly, args=(target, end, argument, log))
        self.process.start()
        end.close()
        self.greeting = self.pipe.recv()

    def do(self, command: str) -> Any:
        self.pipe.send(command)
        return self.pipe.recv()

    def memory(self, others: list[int]) -> tuple[int, int]:
        """Bytes of the process and its children, but for the others; and of the others."""
        assert self.process.pid is not None
        return family(self.process.pid, others), sum(memory(pid) for pid in others)

    def peak(self, command: str, others: list[int]) -> tuple[int, int]:
        """The most `memory` meanwhile."""
        self.pipe.send(command)
        most = self.memory(others)
        while not self.pipe.poll(SAMPLE_SECONDS):
            most = max(most, self.memory(others), key=sum)
        self.pipe.recv()
        return most


@contextmanager
def worker(target: Callable[..., None], argument: str) -> Iterator[Worker]:
    log = Path(os.environ["TRAINER_SCRATCH_DIR"]) / "log"
    one = Worker(target, argument, str(log))
    try:
        yield one
        one.pipe.send("close")
        one.process.join()
        if one.process.exitcode:
            raise EOFError
    except EOFError:
        raise RuntimeError(f"{argument}: the process has ended: {log.read_text()}") from None
    finally:
        one.pipe.close()  # the end of a process that still listens
        one.process.join(10)
        if one.process.is_alive():
            one.process.kill()


def memory(pid: int) -> int:
    """Bytes of a process that are no file's on a disk; what several map is shared out among them. 0 once it is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith(("Pss_Anon:", "Pss_Shmem:")))


def family(pid: int, without: list[int]) -> int:
    """Bytes of a process and its descendants, but for those that are counted elsewhere."""
    children: list[str] = []
    with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
        for task in Path(f"/proc/{pid}/task").iterdir():
            children += (task / "children").read_text().split()
    return memory(pid) + sum(family(int(child), without) for child in children if int(child) not in without)


def processor_seconds(pid: int) -> float:
    """Of a process and all its threads, the ended ones too, by its own clock of the processor."""
    return time.clock_gettime(~pid << 3 | 2)
