"""Processes that step together over loopback, each with a lookout, of which one does something at a step."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
import torch.distributed
from torch._C._distributed_c10d import TCPStore

from tests.trainer.lab import CONFIG
from tests.trainer.standins import StandInData, StandInUploader
from trainer import setup, train
from trainer.contract import Exit, Phase, RunEnv
from trainer.learning.lookout import looking_out
from trainer.learning.verdicts import Pace
from trainer.learning.world import World
from trainer.process.channel import SOCKET_VARIABLE, read_json
from trainer.process.interruption import Interruption
from trainer.store import open_store
from trainer.telemetry.outcome import tell_outcome
from trainer.telemetry.status import Status

STEP = 25  # at which it happens: after some beats
QUICK = Pace(beat=0.2, lost=3.0, hung=60.0, naming=1.5)


def forget_to_go_on() -> None:
    time.sleep(120)


def do(act: str) -> None:
    if act == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif act == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif act == "sleeps":
        forget_to_go_on()
    elif act == "fails":
        raise ValueError("the 7th image has 5 channels")


def steps(world: World, local: Path, act: str, pace: Pace, count: int, step_seconds: float) -> tuple[Exit, str]:
    status = Status(local / "status.json", writes=True)
    with looking_out(world, status, local, pace) as counted:
        for _ in counted(range(count)):
            if status.step == STEP:
                do(act)
            torch.distributed.all_reduce(torch.zeros(1))
            status.step += 1
            status.tick()
            time.sleep(step_seconds)
        if act == "leaves late":
            time.sleep(2 * pace.lost)
        elif act == "saves late":
            status.enter(Phase.SAVING)
            time.sleep(4 * pace.lost)
    spent = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    return Exit.FINISHED, f"{spent}"


def training(world: World, local: Path, act: str, pace: Pace) -> tuple[Exit, str]:
    """What the trainer itself does, with its own lookout, of which only the pace is another."""
    stepped, place = train.step, local.parent / "store"
    place.mkdir(exist_ok=True)

    def step(run: setup.Run) -> None:
        if run.state.step == 2:
            do(act)
        stepped(run)

    train.step = step
    setup.looking_out = partial(setup.looking_out, pace=pace)  # type: ignore[attr-defined]
    setup.stage_data = lambda *arguments: StandInData()  # type: ignore[assignment]
    setup.attempt_dir = lambda env: local  # type: ignore[attr-defined]
    os.environ[SOCKET_VARIABLE] = StandInUploader(open_store(str(place)), "loop").start().path
    env = RunEnv(store=str(place), run_id="loop", scratch_dir=str(local), attempt="1")
    return train.train(CONFIG, env, world, Interruption())


def work(
    port: int, rank: int, size: int, local: Path, act: str, pace: Pace, count: int, step_seconds: float, node: str
) -> None:
    os.environ["TRAINER_NODE"] = node
    torch.set_num_threads(1)
    store = TCPStore("127.0.0.1", port, is_master=False)
    torch.distributed.init_process_group(
        "gloo", store=store, rank=rank, world_size=size, timeout=timedelta(hours=24)
    )  # fmt: skip
    world = World(rank, 0, size, torch.device("cpu"), size)
    if count:
        code = tell_outcome(lambda: steps(world, local, act, pace, count, step_seconds), local, world)
    else:
        code = tell_outcome(lambda: training(world, local, act, pace), local, world)
    torch.distributed.destroy_process_group()
    os._exit(code)


def keep_store(port: int, ready: Path) -> None:
    store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    ready.write_text(str(store.port))
    threading.Event().wait()


@dataclass
class Crew:
    """The store in a process of its own, as torchrun's is, and workers that are machines of their own."""

    folder: Path
    acts: Mapping[int, str]
    size: int = 3
    pace: Pace = QUICK
    steps: int = 1000  # 0: a training by the trainer
    step_seconds: float = 0.02
    workers: list[BaseProcess] = field(default_factory=list)

    def __enter__(self) -> Crew:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        ready = self.folder / "port"
        self.keeper = context.Process(target=keep_store, args=(0, ready))
        self.keeper.start()
        while not ready.exists() or not ready.read_text():
            time.sleep(0.02)
        for rank in range(self.size):
            local = self.folder / str(rank)
            local.mkdir()
            asked = (int(ready.read_text()), rank, self.size, local, self.acts.get(rank, ""), self.pace)
            process = context.Process(target=work, args=(*asked, self.steps, self.step_seconds, f"node{rank}"))
            process.start()
            self.workers.append(process)
        return self

    def __exit__(self, *rest: object) -> None:
        for process in [*self.workers, self.keeper]:
            process.kill()
            process.join()

    def is_at(self, step: int) -> None:
        """Wait until the first worker is there."""
        while (read_json(self.folder / "0/status.json") or {"step": 0})["step"] < step:
            time.sleep(0.02)

    def messages(self, *ranks: int, seconds: float = 20) -> list[str]:
        """Why these ranks ended, which they must within this time, by exit code and message."""
        until = time.monotonic() + seconds
        for rank in ranks:
            self.workers[rank].join(max(0.0, until - time.monotonic()))
            assert self.workers[rank].exitcode is not None, f"rank {rank} has not ended in {seconds} s"
        found = [read_json(self.folder / f"{rank}/exit.json") for rank in ranks]
        return [f"{ended['code']} {ended['message']}" if ended else "nothing" for ended in found]
