"""Small trainings by several processes of this machine, as torchrun would start them, for tests to compare."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from tests.trainer.learning.nets import small_model
from tests.trainer.standins import StandInData, StandInSplit
from trainer import agreement, setup
from trainer.agreement import agree_on_data, agree_on_start
from trainer.contract import RefusedError, RunEnv
from trainer.data.reading.loader import Job, train_jobs
from trainer.learning import state as state_module
from trainer.learning.evaluation import evaluate, scores
from trainer.learning.execution import Execution
from trainer.learning.lookout import LostPartnerError
from trainer.learning.schedule import Clock
from trainer.learning.state import make_state
from trainer.learning.step import train_step
from trainer.learning.world import Wishes, World, any_of, join, share_buffers
from trainer.recipes.config import Config, DataConfig, ModelConfig, OptimConfig, RegularizeConfig
from trainer.telemetry.step_log import StepLog

IMAGES, VAL_IMAGES, STEPS = 80, 7, 50
CONFIG = Config(
    epochs=10, global_batch_size=16, device_batch_size=2, precision="fp32", device="cpu", val_batch_size=2,
    model=ModelConfig(num_classes=4), optim=OptimConfig(peak_lr=0.02, momentum=0.9),
    data=DataConfig(resolution=32, start_resolution=32, val_resize=32, val_crop=32, workers=1),
    regularize=RegularizeConfig(mixup_alpha=0.4, cutmix_alpha=1.0),
)  # fmt: skip
# Nothing is drawn for a micro-batch here, so two micro-batches that are normalised together are one of twice the size.
TOGETHER = replace(CONFIG, model=ModelConfig(num_classes=4, sync_norm=True), regularize=RegularizeConfig())
TWICE = replace(TOGETHER, device_batch_size=4)
ROUNDED = replace(CONFIG, bf16_gradients=True)


@dataclass(frozen=True, kw_only=True)
class Part:
    """Of a training: steps first … last - 1, from what `start` kept, or from the beginning."""

    name: str
    first: int = 0
    last: int = STEPS
    start: str = ""
    keep: tuple[int, ...] = (STEPS,)  # states to keep
    look_every: int = 1  # steps
    config: Config = CONFIG


@dataclass(frozen=True, kw_only=True)
class Group:
    """Processes that meet, and what they do one after the other. They are on machines of `on_each` processes."""

    size: int
    parts: Sequence[Part]
    on_each: int = 4
    head: int | None = None  # the number of the machine that owns the run; None: nobody has said so
    scored: str = ""  # a state to be scored


def train_together(folder: Path, group: Group) -> None:
    """Run the group to its end. Each process leaves `<part>.<rank>.json`, the main one `<part>.<step>.pt`, too."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workers = [context.Process(target=work, args=(rank, port, folder, group)) for rank in range(group.size)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        if worker.exitcode is None:
            worker.kill()
    assert [worker.exitcode for worker in workers] == [0] * group.size


def work(rank: int, port: int, folder: Path, group: Group) -> None:
    torch.set_num_threads(1)
    machine, place = divmod(rank, group.on_each)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(group.size),
        "LOCAL_RANK": str(place), "GROUP_RANK": str(machine), "GROUP_WORLD_SIZE": str(-(-group.size // group.on_each)),
    }  # fmt: skip
    if group.head is not None:
        os.environ["TRAINER_IS_HEAD"] = str(int(machine == group.head))
    state_module.build_model = with_dropout  # type: ignore[attr-defined]
    with join(CONFIG) as world:
        (folder / f"differ.{group.size}.{world.rank}.json").write_text(json.dumps(differ(world)))
        (folder / f"wishes.{group.size}.{world.rank}.json").write_text(json.dumps(wish(world)))
        for part in group.parts:
            train_part(part, world, folder)
        if group.scored:
            score(group, world, folder)


def differ(world: World) -> dict[str, list[str]]:
    """What a process is told where one fact differs: by what differs, the kind of error and its message.

    The machines have two processes each. Where only some differ, those of the last machine do.
    """
    env, found = RunEnv(store="out", run_id="same", scratch_dir="scratch"), dict[str, list[str]]()
    machine, last = world.rank // 2, (world.size - 1) // 2
    mine = "its own" if machine == last else "the same"

    def told(name: str, config: Config = CONFIG) -> None:
        try:
            agree_on_start(config, env, world)
        except (RefusedError, LostPartnerError) as error:
            found[name] = [type(error).__name__, str(error)]

    told("nothing")
    os.environ["TRAINER_NODE"] = "abcd"[machine]
    told("--seed", replace(CONFIG, seed=machine))
    told("the leader's own", replace(CONFIG, seed=int(world.rank == world.size - 1 or world.rank == 1)))
    told("one process of the last", replace(CONFIG, seed=int(world.rank == world.size - 1)))
    with mock.patch.object(agreement, "code_digest", return_value=mine):
        told("code")
    with mock.patch.object(torch, "__version__", mine):
        told("torch")
    with mock.patch.object(platform, "machine", return_value=mine):
        told("device")
    with mock.patch.dict(os.environ, TRAINER_IMAGE=mine):
        told("image")
    prepared = data()
    prepared.index.fingerprint = mine
    try:
        agree_on_data(prepared.index, world)
    except (RefusedError, LostPartnerError) as error:
        found["data"] = [type(error).__name__, str(error)]
    return found


def wish(world: World) -> list[list[bool]]:
    """What a process hears in as many rounds as there are processes: in each round another one wants something."""
    number, heard = 0, list[list[bool]]()
    wishes = Wishes(lambda: [number == world.rank, False], world)
    for number in range(world.size):  # noqa: B007  # the wish looks at it
        wishes.ask()
        heard.append(wishes.answer())
    return [*heard, [any_of(world.rank == world.size - 1, world), any_of(False, world)]]


def with_dropout(config: ModelConfig, *, initialise: bool = True) -> nn.Module:
    model = small_model()
    if not config.sync_norm:
        model.flat = nn.Sequential(nn.Flatten(), nn.Dropout(0.2))
    return model


def data() -> Any:
    made = StandInData()
    made.splits = {"train": StandInSplit("train", IMAGES), "val": StandInSplit("val", VAL_IMAGES)}
    for split in made.splits.values():
        made.index.splits[split.split].images = len(split)
    return made


def train_part(part: Part, world: World, folder: Path) -> None:
    state, seen = make_state(part.config, world.device, initialise=True), list[list[int]]()
    if part.start:
        kept = torch.load(folder / f"{part.start}.{part.first}.pt")
        for name, tensor in state.tensors().items():
            tensor.detach().copy_(kept[name])
        state.step = part.first

    def watched(*arguments: Any, **options: Any) -> Iterator[Job]:
        for job in train_jobs(*arguments, **options):
            seen.append(job.indices.tolist())
            yield job

    setup.train_jobs = watched  # type: ignore[attr-defined]
    made, clock, said = data(), Clock.of(part.config, IMAGES), list[str]()
    execution = Execution.of(part.config, state, world, said.append)
    losses: dict[int, float] = {}
    exchanges, storages = list[int](), set[int]()
    weights = list(state.model.parameters())
    state.optimizer.register_step_pre_hook(
        lambda *_: storages.add(
            len({weight.grad.untyped_storage().data_ptr() for weight in weights if weight.grad is not None})
        )
    )
    with setup.open_loader(part.config, made, clock, world, range(part.first, part.last)) as loader:
        log, batches = StepLog(world, loader, clock.steps_per_epoch), iter(loader)
        while state.step < part.last:
            settings = clock.at(state.step)
            before = collectives()
            sums = train_step(state, execution, batches, part.config, settings, world)
            exchanges.append(collectives() - before)
            log.add(state.step, settings, sums)
            if state.step % part.look_every == 0 or state.step == part.last:
                log.look({})
                losses |= {row["step"]: row["train/loss"] for rows in log.read(state.step) for row in rows}
            if world.is_main and state.step in part.keep:
                torch.save(state.tensors(), folder / f"{part.name}.{state.step}.pt")
    found = {
        "rank": os.environ["RANK"], "losses": losses, "images": seen,
        "layers": type(execution.eager).__name__, "nodes": world.nodes,
        "exchanges": exchanges, "storages": sorted(storages),
    }  # fmt: skip
    (folder / f"{part.name}.{world.rank}.json").write_text(json.dumps(found))


def collectives() -> int:
    """How many this process has begun, of every kind."""
    whole: Any = torch.distributed.group.WORLD
    return 0 if whole is None else int(whole._get_backend(torch.device("cpu"))._get_sequence_number_for_group())


def score(group: Group, world: World, folder: Path) -> None:
    """The scores of a state, by each process."""
    state = make_state(CONFIG, world.device, initialise=True)
    if world.is_main:
        kept = torch.load(folder / f"{group.scored}.{STEPS}.pt")
        for name, tensor in state.tensors().items():
            tensor.detach().copy_(kept[name])
    for parameter in state.model.parameters():
        if world.size > 1:
            torch.distributed.broadcast(parameter.detach(), src=0)
    share_buffers(state.model, world)
    sums = evaluate(state.models(), data().splits["val"], CONFIG, world, lambda images: None)
    found = scores(sums, world)
    (folder / f"scores.{group.size}.{world.rank}.json").write_text(json.dumps(found))
