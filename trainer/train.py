"""Train: the whole run, top to bottom. Start or continue, step, validate, save, stop.

    python -m trainer.train digits --epochs 4        options: python -m trainer.train digits --help

The clock is the optimizer step: learning rate, resolution, order of images and the time to validate are pure
functions of it, so a run continues from one number and the tensors of a checkpoint. Only saving goes by time.
"""

from __future__ import annotations

import os
import sys

from trainer.contract import RunEnv
from trainer.learning.schedule import Plan
from trainer.process.channel import SOCKET_VARIABLE, attempt_dir, register
from trainer.recipes.command_line import command_line_or_exit

if __name__ == "__main__":  # before torch is imported, so that help and usage errors answer at once
    CONFIG = command_line_or_exit("python -m trainer.train")
    if SOCKET_VARIABLE not in os.environ:  # the supervisor starts the uploader, and then this again
        os.execv(sys.executable, [sys.executable, "-m", "trainer.process.supervise", *sys.argv[1:]])
    register(attempt_dir(RunEnv.from_environ(os.environ)))
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # batches change size with the resolution

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.checkpoint.restore import list_manifests, restore
from trainer.checkpoint.saver import Checkpointer
from trainer.contract import Exit, LostRunError, Phase, RefusedError, UserError, run_key
from trainer.data.augment.batch import mix, one_hot, to_augmented_input
from trainer.data.reading.loader import Batch, Loader, train_jobs
from trainer.data.reading.order import MIX, generator
from trainer.learning.average import update_ema
from trainer.learning.evaluation import autocast, evaluate, hits, scores
from trainer.learning.optimizer import set_lr
from trainer.learning.schedule import one_cycle_lr
from trainer.learning.state import State, make_state
from trainer.learning.world import World, agree, any_of, barrier, empty_cache, join, share_buffers, without_sync, wrap
from trainer.process.channel import Channel, DisconnectedError, leave_exit
from trainer.process.interruption import Interrupted, Interruption
from trainer.recipes.config import Config, to_json
from trainer.setup import check_config, check_data, identity, read_config, set_backends, stage_data
from trainer.store import StoreError, open_store
from trainer.store.retry import patiently
from trainer.telemetry.console import Console
from trainer.telemetry.metrics import MetricsWriter
from trainer.telemetry.status import Status
from trainer.telemetry.step_log import StepLog

STOP_SECONDS = 45.0  # how long an attempt that was told to stop waits for its last checkpoint
END_SECONDS = 3600.0  # how long a finished one does, unless TRAINER_DEADLINE says another time


def train_step(
    state: State, net: nn.Module, batches: Iterator[Batch], config: Config, plan: Plan, world: World,
    before_update: Callable[[], None],
) -> Tensor:  # fmt: skip
    """One optimizer step. Returns this process's sums of loss, top-1 hits, top-5 hits, and images: (4,) float32.

    `before_update` is called before the first parameter changes.
    """
    accum, sums = config.grad_accum_steps(world.size), torch.zeros(4, device=world.device)
    set_lr(state.optimizer, one_cycle_lr(state.step, plan.total_steps, config.optim))
    torch.manual_seed(int(generator(MIX, config.seed, 0, state.step).integers(2**63)))  # for models with dropout
    for micro in range(accum):
        batch = next(batches)
        rng = generator(MIX, config.seed, 1 + micro * world.size + world.rank, state.step)
        images = to_augmented_input(batch.images, batch.flips, batch.draws, config.data, config.regularize)
        images, targets = mix(images, one_hot(batch.labels, config.model.num_classes), config.regularize, rng)
        with without_sync(net, skip=micro < accum - 1):
            with autocast(config, world.device):
                logits = net(images)
            loss = F.cross_entropy(logits.float(), targets, label_smoothing=config.regularize.label_smoothing)
            state.scaler.scale(loss / accum).backward()  # type: ignore[no-untyped-call]
        count = loss.new_full((), len(images))
        sums += torch.stack([loss.detach() * count, *hits(logits.detach(), batch.labels), count])
    before_update()
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    if state.average is not None:
        update_ema(state.average, state.model, config.regularize.ema_decay, state.step)
    return sums


def train(config: Config, env: RunEnv, world: World, interruption: Interruption) -> tuple[Exit, str]:
    """Run to the end or to an interruption. Raises UserError, Interrupted before there is anything to save."""
    local, store = attempt_dir(env), open_store(env.store)
    status = Status(local / "status.json", writes=world.is_main)

    def tell(line: str) -> None:
        """That a store fails, and what is done about it."""
        status.enter(Phase.WAITING_FOR_STORE)
        if world.is_main:
            print(line, file=sys.stderr, flush=True)

    with interruption.raises(), ExitStack() as stack:
        set_backends(config)
        status.enter(Phase.STAGING)
        data = stage_data(config, env, world, status, tell)
        plan = Plan.of(config, data.index.splits["train"].images)
        config.grad_accum_steps(world.size)
        status.enter(Phase.STARTING)
        console = stack.enter_context(closing(Console(plan.total_steps, plan.steps_per_epoch, speaks=world.is_main)))

        def read(work: Callable[[], Any]) -> Any:
            """From a store that fails for a while, too: a run never begins anew because it could not be read."""
            return patiently(f"the store {store.uri}", work, tell)

        if has_checkpoint := bool(read(lambda: list_manifests(store, env.run_id)[1])):
            check_config(read(lambda: read_config(store, env.run_id)), env.run_id, config)
        state = make_state(config, world.device, initialise=not has_checkpoint)
        status.enter(Phase.WAITING_FOR_STORE)
        channel = stack.enter_context(closing(Channel.to_uploader())) if world.is_main else None
        barrier(world)  # from here on the run is this attempt's: nobody else adds checkpoints
        restored, skipped = read(lambda: restore(store, env.run_id, state.tensors()))
        agree(restored.step if restored is not None else -1, world)
        status.enter(Phase.STARTING)
        for reason in skipped:
            console.say(f"checkpoint skipped: {reason}")
        changed = []
        if restored is not None:
            changed = check_config(restored.manifest["config"], env.run_id, config)  # younger than the look above
            check_data(restored, data)
            state.load_counters(restored.counters)
            console.say(f"continuing run {env.run_id!r} from step {state.step} of {plan.total_steps}")
        for line in changed:
            console.say(f"with another config, as asked for: {line}")
        if channel is not None and (restored is None or changed):
            channel.send({"op": "put", "key": run_key(env.run_id, "config.json"), "body": to_json(config)})
        origin = int(restored.manifest["attempt"]) if restored is not None else 0
        metrics = MetricsWriter(local, channel, env.run_id, int(env.attempt), first_step=state.step, origin=origin)
        checkpointer = Checkpointer(
            state.tensors(), channel, identity(config, data, env), changed_in_forward=state.changed_in_forward(),
            restored=(restored.step, restored.key, restored.counters) if restored is not None else (-1, "", {}),
        )  # fmt: skip
        net = wrap(state.model, world)
        if config.compile:
            net = torch.compile(net)  # type: ignore[assignment]
        resources = stack.pop_all()

    with resources:
        jobs = train_jobs(
            config, lambda pixels: data.open("train", pixels), images=data.index.splits["train"].images,
            rank=world.rank, world=world.size, first_step=state.step, steps=plan.total_steps,
        )  # fmt: skip
        loader = resources.enter_context(
            Loader(jobs, max_images=config.device_batch_size, workers=config.data.workers, device=world.device,
                   max_pixels=max(config.data.resolution, config.data.start_resolution))
        )  # fmt: skip
        batches = iter(loader)
        log = StepLog(world, loader)

        def look() -> None:
            """Bring the sums of the steps since the last look from the device: rows, finite check, console."""
            rows = log.read(plan.steps_per_epoch)
            for row in rows:
                if not math.isfinite(row["train/loss"]):
                    raise UserError(
                        f"the loss of step {row['step']} is {row['train/loss']}: it must be finite; lower "
                        f"--optim.peak-lr (now {config.optim.peak_lr}) or train in bf16 or fp32, under a new RUN="
                    )
                metrics.add(row["step"], row)
            if rows:
                state.seconds += log.seconds
                metrics.add(state.step, {"checkpoint/lag_seconds": checkpointer.lag_seconds})
                console.log(state.step, log.summary)

        def save(*, is_best: bool = False) -> None:
            """Metrics first: every step of a checkpoint is in the store before its manifest is."""
            look()
            metrics.flush()
            checkpointer.save(state.step, state.counters(), is_best=is_best)

        def validate() -> None:
            """Score model and average on every validation image, and save that. Interrupted, it is void."""
            look()
            status.enter(Phase.EVALUATING)
            models = {"val": state.model} | ({"val_ema": state.average} if state.average is not None else {})
            for model in models.values():
                share_buffers(model, world)
            sums = {}
            try:
                with interruption.raises():
                    sums = evaluate(models, data.open("val", config.data.val_resize), config, world, status.tick)
            except Interrupted:
                pass  # the other processes have to hear of it first
            if any_of(not sums, world):
                return
            found = scores(sums, world)
            state.validated, state.scores = state.step, found
            metrics.add(state.step, found)
            console.scores(state.step, found)
            top1, name = max((found[f"{name}/top1"], name) for name in models)
            if is_best := top1 > state.best["top1"]:
                state.best = {"top1": top1, "step": state.step, "weights": "ema" if name == "val_ema" else "model"}
            save(is_best=is_best)
            empty_cache(world)  # validation's blocks have other shapes
            log.restart_clock()
            status.enter(Phase.TRAINING)

        status.enter(Phase.COMPILING if config.compile else Phase.TRAINING)
        console.start(state.step)
        while True:
            if plan.validation_is_due(state.step) and state.validated < state.step:
                validate()
            if any_of(interruption.requested, world) or state.step == plan.total_steps:
                break
            step, pixels = state.step, config.resolution_at(int(plan.epoch(state.step)))
            sums = train_step(state, net, batches, config, plan, world, checkpointer.before_update)
            log.add(state.step, one_cycle_lr(step, plan.total_steps, config.optim), sums)
            status.step = state.step
            if status.phase == Phase.COMPILING:
                status.enter(Phase.TRAINING)
            status.tick()
            console.step(state.step)
            if state.step % config.log_every_steps == 0:
                look()
            asked = interruption.take_save_request()
            due = checkpointer.is_due(config.checkpoint.every_seconds) or asked
            if any_of(due, world) and not plan.validation_is_due(state.step):  # that ends with a save
                save()
            metrics.flush_if_due()
            if config.resolution_at(int(plan.epoch(state.step))) != pixels:
                empty_cache(world)

        look()
        metrics.flush()
        status.enter(Phase.SAVING)
        patience = float(env.deadline) - time.time() if env.deadline else END_SECONDS
        give_up = time.monotonic() + max(patience, STOP_SECONDS)

        def deadline() -> float:
            nonlocal give_up
            status.tick()
            if interruption.requested:
                give_up = min(give_up, time.monotonic() + STOP_SECONDS)
            return give_up

        try:
            checkpointer.save_last(state.step, state.counters(), deadline)
        except StoreError:
            if not interruption.requested:
                raise
            return Exit.INTERRUPTED, f"step {state.step} of {plan.total_steps} is handed over"  # tried a while longer
        if state.validated < plan.total_steps:
            return Exit.INTERRUPTED, f"step {state.step} of {plan.total_steps} is saved"
        if channel is not None:
            body = {
                "run_id": env.run_id, "recipe": config.recipe, "steps": plan.total_steps, "epochs": config.epochs,
                "steps_per_epoch": plan.steps_per_epoch, "seconds": state.seconds, "attempts": int(env.attempt),
                "images_per_second": plan.total_steps * config.global_batch_size / state.seconds,
                "last": state.scores, "best": state.best, "checkpoint": checkpointer.committed,
                "parameters": sum(p.numel() for p in state.model.parameters()),
            }  # fmt: skip
            channel.send({"op": "put", "key": run_key(env.run_id, "result.json"), "body": body})
        return Exit.FINISHED, f"{plan.total_steps} steps are done"


def main(config: Config) -> int:
    """Train, and leave the exit code and its reason where the supervisor finds them: torchrun has one code for all."""
    env = RunEnv.from_environ(os.environ)
    local, interruption = attempt_dir(env), Interruption()
    with join() as world:  # left only after the reason is: a peer that loses its partner must not be the first
        try:
            code, message = train(config, env, world, interruption)
        except UserError as error:
            code, message = Exit.USER, str(error)
            leave_exit(local, code, message, run_failed=not isinstance(error, RefusedError))
        except Interrupted:
            code, message = Exit.INTERRUPTED, "nothing had to be saved"
        except LostRunError as error:
            code, message = Exit.HELD, str(error)
        except (StoreError, DisconnectedError) as error:  # no bug: a message says it all
            leave_exit(local, 1, str(error))
            return 1
        except BaseException as error:
            leave_exit(local, 1, f"{type(error).__name__}: {error}")
            raise
        if world.is_main or code not in (Exit.FINISHED, Exit.INTERRUPTED):  # success is the main process's to tell
            leave_exit(local, code, message)
        # A code of its own would make torchrun end the other processes, and print pages: only where they must end.
        return int(code) if code in (Exit.USER, Exit.HELD) and world.size > 1 else 0


if __name__ == "__main__":
    raise SystemExit(main(CONFIG))
