"""What must be true before the first step: backends, data, and that this run is the one that its name says."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from trainer.agreement import agree_on_data, agree_on_start
from trainer.checkpoint.line import list_manifests, read_lease
from trainer.checkpoint.restore import Restored, restore, show_digest
from trainer.checkpoint.saver import Checkpointer
from trainer.contract import Phase, RefusedError, RunEnv, UserError, checkpoint_key, run_key
from trainer.data.format import Index, read_index
from trainer.data.reading.copies import lack_of_pixels
from trainer.data.reading.loader import Batch, Loader, train_jobs
from trainer.data.reading.split import PreparedSplit
from trainer.data.stage import known_index
from trainer.learning.execution import Execution
from trainer.learning.lookout import looking_out
from trainer.learning.loss import balanced_weights
from trainer.learning.model import check_frozen, check_weights
from trainer.learning.norms import IMAGES
from trainer.learning.schedule import Clock
from trainer.learning.state import State, make_state
from trainer.learning.world import World, agree, barrier
from trainer.manifest import data_key
from trainer.model_card import CARD_FILE, card_of
from trainer.origin import check_config, check_data, git_commit, identity, lack_of, read_config
from trainer.process.channel import Channel, attempt_dir
from trainer.process.interruption import Interruption
from trainer.recipes.config import Config, DataConfig
from trainer.recipes.fields import to_json
from trainer.recipes.named import default_data
from trainer.recipes.networks import advice
from trainer.recipes.sides import wanted_span
from trainer.staging import fetch_data, tell_waiting
from trainer.store import ObjectStore, may_pass, naming_the_fix, open_store
from trainer.store.retry import patiently
from trainer.telemetry.console import Console
from trainer.telemetry.metrics import MetricsWriter
from trainer.telemetry.opening import with_opening
from trainer.telemetry.status import Status
from trainer.telemetry.step_log import StepLog
from trainer.text import show_bytes

CHECKPOINTS_AT_ONCE = 4  # the newest, the one before, the best, and the one that is written


class Data:
    """The prepared images of a run. Each stored copy is opened once."""

    def __init__(self, folder: Path, index: Index, config: DataConfig):
        self.folder, self.index, self.config = folder, index, config
        self._opened = cache(lambda split, side: PreparedSplit(folder, index, split, side))

    def copies(self, split: str, pixels: int) -> tuple[PreparedSplit, ...]:
        """Those that serve so many pixels, the smallest first. All have the same labels."""
        sides = self.index.sides_for(split, wanted_span(self.config, split, pixels))
        return tuple(self._opened(split, side) for side in sides)

    def open(self, split: str, pixels: int) -> PreparedSplit:
        """The smallest of them."""
        return self.copies(split, pixels)[0]


def set_backends(config: Config) -> None:
    """Process-wide switches of torch, from the config."""
    torch.use_deterministic_algorithms(config.deterministic)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # Filling every new tensor with NaN costs 9 % of a step on an H100, and changes no bit of the result.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not config.deterministic
    torch.set_float32_matmul_precision("high")  # TF32 where fp32 is asked for on a GPU that has it


def stage_data(config: Config, env: RunEnv, world: World, status: Status, tell: Callable[[str], None]) -> Data:
    """Prepared data on this machine: one process per machine fetches or makes it, the others wait and find it."""
    if world.local_rank == 0:
        folder = fetch_data(config, env, status, tell)
    barrier(world)
    if world.local_rank != 0:
        folder = fetch_data(config, env, status, tell)
    return Data(folder, read_index(folder), config.data)


def find_mistakes(config: Config, env: RunEnv, tell: Callable[[str], None], *, is_new: bool) -> None:
    """Raises UserError for what is known before data is staged, which may take an hour: weights, classes, steps."""
    check_frozen(config)
    if is_new:
        check_weights(config.model)
    data = env.data or default_data(config.recipe)
    with naming_the_fix(what := f"the data {data}"):
        index = patiently(what, lambda: known_index(data), tell, worth_it=may_pass)
    if index is not None:
        Clock.of(resolved(config, index), index.splits["train"].images)


def resolved(config: Config, index: Index) -> Config:
    """The config with as many outputs as the data has classes. Raises UserError where another number was given."""
    classes, given = len(index.classes), config.model.num_classes
    if given not in (0, classes):
        raise UserError(
            f"--model.num-classes is {given}, but {index.name!r} has {classes} classes: they must be "
            f"equal; pass --model.num-classes {classes}, or leave the option out"
        )
    return replace(config, model=replace(config.model, num_classes=classes))


def check_room(store: ObjectStore, run_id: str, checkpoint_bytes: int) -> None:
    """A folder must have room for all checkpoints that are kept, and for the one that is written, or RefusedError."""
    if (free := store.free_bytes()) is None:
        return
    lease = read_lease(store, run_id)
    named = lease.keys() if lease is not None else set()
    given_up = {data_key(manifest) for manifest in named}  # sooner or later; what a rewind has left stays
    there = sum(info.bytes for info in store.list(checkpoint_key(run_id, "data/")) if info.key in given_up)
    if free + there < CHECKPOINTS_AT_ONCE * checkpoint_bytes:
        raise RefusedError(
            f"the store {store.uri} has {show_bytes(free)} free: {CHECKPOINTS_AT_ONCE} checkpoints of "
            f"{show_bytes(checkpoint_bytes)} must fit; free disk space, or name a folder on a larger disk (STORE=…)"
        )


@dataclass(frozen=True, kw_only=True)
class Run:
    """What lives as long as the loop. The state changes; which objects there are does not."""

    config: Config
    env: RunEnv
    world: World
    clock: Clock
    data: Data
    state: State
    execution: Execution
    batches: Iterator[Batch]
    log: StepLog
    metrics: MetricsWriter
    checkpointer: Checkpointer
    console: Console
    status: Status
    interruption: Interruption
    channel: Channel | None  # to the uploader; the main process has it

    @property
    def makes_kernels(self) -> bool:
        """Whether the first step of each resolution compiles or captures them."""
        return self.config.compile or self.config.cuda_graphs

    def now(self) -> tuple[str, int]:
        """The phase, and the pixels of its images."""
        if self.status.phase == Phase.EVALUATING:
            return self.status.phase, self.config.data.val_crop
        return self.status.phase, self.clock.resolution(self.state.step)


@contextmanager
def start_or_continue(config: Config, env: RunEnv, world: World, interruption: Interruption) -> Iterator[Run]:
    """All that a run needs for its next step; closed in reverse at the end.

    Raises Interrupted when a stop is asked for meanwhile: there is nothing to save yet. Raises UserError, StoreError.
    """
    with ExitStack() as resources:
        with interruption.raises():
            run = _open(config, env, world, interruption, resources)
        yield run


def _open(config: Config, env: RunEnv, world: World, interruption: Interruption, resources: ExitStack) -> Run:
    local, store = attempt_dir(env), open_store(env.store)
    status = Status(local / "status.json", writes=world.local_rank == 0, nodes=world.nodes, processes=world.size)
    counted = resources.enter_context(looking_out(world, status, local))
    set_backends(config)
    agree_on_start(config, env, world)
    tell = partial(tell_waiting, status, speaks=world.is_main)
    read = partial(patiently, f"the store {store.uri}", tell=tell)
    manifests = read(lambda: list_manifests(store, env.run_id)[1])
    if manifests:  # refused before the run is taken
        check_config(read(lambda: read_config(store, env.run_id, manifests[0])), env.run_id, config)
    find_mistakes(config, env, tell, is_new=not manifests)
    status.enter(Phase.STAGING)
    data = stage_data(config, env, world, status, tell)
    agree_on_data(data.index, world)
    config = resolved(config, data.index)
    clock = Clock.of(config, data.index.splits["train"].images)
    config.micro_batches_of(world.rank, world.size)
    status.enter(Phase.STARTING)
    console = Console(clock.total_steps, clock.steps_per_epoch, speaks=world.is_main)
    resources.enter_context(closing(console))
    for lack in filter(None, (lack_of(data.folder, data.index), lack_of_pixels(config, data.index))):
        console.say(lack)
    for line in advice(config):
        console.say(line)
    state = make_state(config, world.device, initialise=not manifests)
    status.enter(Phase.WAITING_FOR_STORE)
    channel = resources.enter_context(closing(Channel.to_uploader())) if world.is_main else None
    barrier(world)  # from here on the run is this attempt's: nobody else adds checkpoints
    restored, skipped = read(lambda: restore(store, env.run_id, state.tensors(), status.tick))
    agree(restored.step if restored is not None else -1, world)
    status.enter(Phase.STARTING)
    for reason in skipped:
        console.say(f"checkpoint skipped: {reason}")
    if restored is not None:
        _continue(restored, config, env, data, state, clock, console)
    if channel is not None:
        channel.send({"op": "put", "key": run_key(env.run_id, "config.json"), "body": to_json(config)})
        card = card_of(config, data.index, env.run_id, git_commit())
        channel.send({"op": "put", "key": run_key(env.run_id, CARD_FILE), "body": card.to_json()})
    origin = int(restored.manifest["attempt"]) if restored is not None else 0
    metrics = MetricsWriter(channel, env.run_id, int(env.attempt), first_step=state.step, origin=origin)
    checkpointer = Checkpointer(
        state.tensors(), channel, identity(config, data.index, env) | {"steps_per_epoch": clock.steps_per_epoch},
        restored=(restored.step, restored.key, restored.counters) if restored is not None else (-1, "", {}),
        restored_sha256=restored.sha256 if restored is not None else "",
    )  # fmt: skip
    resources.enter_context(closing(checkpointer))
    if world.is_main:
        read(lambda: check_room(store, env.run_id, checkpointer.bytes))
    execution = Execution.of(config, state, world, console.say, class_weights(config, data))
    loader = resources.enter_context(open_loader(config, data, clock, world, range(state.step, clock.total_steps)))
    batches = counted(loader)
    if restored is None and world.is_main:
        batches = with_opening(batches, config, state.models(), metrics)
    return Run(
        config=config, env=env, world=world, clock=clock, data=data, state=state, execution=execution,
        batches=batches, log=StepLog(world, loader, clock.steps_per_epoch), metrics=metrics,
        checkpointer=checkpointer, console=console, status=status, interruption=interruption, channel=channel,
    )  # fmt: skip


def class_weights(config: Config, data: Data) -> Tensor | None:
    """(classes,) float32 from the training labels, where the config asks for weights."""
    if config.regularize.class_weights == "none":
        return None
    labels = data.open("train", config.data.resolution).labels
    return balanced_weights(labels, config.model.num_classes)


def _continue(
    restored: Restored, config: Config, env: RunEnv, data: Data, state: State, clock: Clock, console: Console
) -> None:
    """Go on from a checkpoint, whose tensors are restored already. Raises RefusedError."""
    changed = check_config(restored.manifest["config"], env.run_id, config)  # of what was restored
    check_data(restored, data.folder, data.index)
    state.load_counters(restored.counters)
    console.say(f"continuing run {env.run_id!r} from step {state.step} of {clock.total_steps}")
    console.say(f"its checkpoint has {show_digest(restored.sha256, is_vouched=restored.is_vouched)}")
    for line in changed:
        console.say(f"with another config, as asked for: {line}")


def open_norm_loader(run: Run) -> Loader:
    """Training images for the statistics of averaged weights: those of steps after the last, a function of the seed."""
    steps, size = run.clock.total_steps, run.config.global_batch_size
    more = min(run.clock.steps_per_epoch, -(-IMAGES // size))
    return open_loader(run.config, run.data, run.clock, run.world, range(steps, steps + more))


def open_loader(config: Config, data: Data, clock: Clock, world: World, steps: range) -> Loader:
    """The micro-batches of these steps."""
    jobs = train_jobs(
        config, partial(data.copies, "train"), clock.resolution, images=data.index.splits["train"].images,
        rank=world.rank, world=world.size, first_step=steps.start, steps=steps.stop,
    )  # fmt: skip
    return Loader(
        jobs, max_images=config.device_batch_size, workers=config.data.workers, device=world.device,
        image_bytes=max(config.data.resolution, config.data.start_resolution) ** 2 * 3,
    )  # fmt: skip
