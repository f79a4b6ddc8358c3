"""Train: the whole run, top to bottom. Start or continue, then validate, stop, step and save, each when it is due.

    python -m trainer.train digits --epochs 4        options: python -m trainer.train digits --help

The clock is the optimizer step: learning rate, resolution, order of images and the time to validate are pure
functions of it. So a run continues from one number and the tensors of a checkpoint. Only saving goes by time.
"""

from __future__ import annotations

import os
import sys

from trainer.contract import RunEnv
from trainer.process.channel import SOCKET_VARIABLE, attempt_dir, leave_exit, register
from trainer.recipes.command_line import command_line_or_exit
from trainer.text import forgive_output

if __name__ == "__main__":  # before torch is imported, so that help and usage errors answer at once
    forgive_output()
    CONFIG = command_line_or_exit("python -m trainer.train")
    if SOCKET_VARIABLE not in os.environ:  # the supervisor starts the uploader, and then this again
        os.execv(sys.executable, [sys.executable, "-m", "trainer.process.supervise", *sys.argv[1:]])
    register(attempt_dir(RunEnv.from_environ(os.environ)))
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # batches change size with the resolution

import math
from functools import partial

from torch import nn

from trainer.contract import CRASH, Exit, MachineError, Phase, UserError
from trainer.learning.device import check_device, telling_what_fits
from trainer.learning.evaluation import best_of, evaluate, scores
from trainer.learning.norms import renew_norms, share_norms
from trainer.learning.step import train_step
from trainer.learning.world import Wishes, World, any_of, empty_cache, join, share_buffers
from trainer.process.interruption import Deadline, Interrupted, Interruption
from trainer.process.nodes import blaming_this_machine
from trainer.recipes.config import Config
from trainer.setup import Run, open_norm_loader, start_or_continue
from trainer.store import StoreError
from trainer.telemetry.outcome import put_result, tell_outcome
from trainer.telemetry.step_log import summary


def train(config: Config, env: RunEnv, world: World, interruption: Interruption) -> tuple[Exit, str]:
    """Run to the end or an interruption. Raises Interrupted while there is nothing to save, UserError, StoreError,
    MachineError.
    """
    check_device(config, world.device, world.size)
    with (
        blaming_this_machine(env), start_or_continue(config, env, world, interruption) as run,
        telling_what_fits(config, world.device, run.now),
    ):  # fmt: skip
        return loop(run)


def loop(run: Run) -> tuple[Exit, str]:
    """All steps that are left. All processes decide together on stopping and saving: one question a step.

    Before a step that compiles or captures kernels they ask once more for a stop.
    """
    state, clock, world, wishes = run.state, run.clock, run.world, Wishes(lambda: wants_of(run), run.world)
    run.status.step = state.step
    run.status.enter(Phase.COMPILING if run.makes_kernels else Phase.TRAINING)
    run.console.start(state.step)
    stops = False
    while True:
        if validation_is_owed(run) and not stops:
            stops = not validate(run)
        if stops or state.step == clock.total_steps or early_end(run):
            return finish(run)
        if run.makes_kernels and size_changes(run) and any_of(run.interruption.requested, world):
            return finish(run)  # a stop is not to wait for a compiler
        wishes.ask()
        step(run)
        stops, saves = wishes.answer()
        if saves and not clock.validation_is_due(state.step):  # a validation ends with a save
            save(run)
        run.metrics.flush_if_due()
        if clock.resolution_changes(state.step):
            empty_cache(world)


def wants_of(run: Run) -> list[bool]:
    """Whether this process wants to stop, and whether it wants to save."""
    asked = run.interruption.take_save_request()
    return [run.interruption.requested, run.checkpointer.is_due(run.config.checkpoint.every_seconds) or asked]


def validation_is_owed(run: Run) -> bool:
    """Whether this step is to be validated and is not yet, also in a continued run."""
    return run.clock.validation_is_due(run.state.step) and run.state.validated < run.state.step


def early_end(run: Run) -> str:
    """Why the run is over before its last step, for the user; "" if it is not.

    A function of the scores and the step alone: so an attempt that continues at such a step ends, too.
    """
    state, clock, best = run.state, run.clock, run.state.best
    is_last = state.step == clock.total_steps or state.validated < state.step
    if is_last or not clock.is_out_of_patience(state.step, best["step"]):
        return ""
    said = f"the best top-1, {100 * best['top1']:.2f} %, is that of step {best['step']}, {run.config.patience} "
    said += "validations before (--patience)"
    rates = [clock.at(step).lr for step in (state.step - 1, clock.total_steps - 1)]
    if rates[1] < rates[0]:
        said += f"; the learning rate is {rates[0]:.3g} and would have come down to {rates[1]:.3g} by step "
        said += f"{clock.total_steps}: fewer --epochs bring it down sooner"
    return said


def size_changes(run: Run) -> bool:
    """Whether the next step has images of another size than the one before; so it is for the first of an attempt."""
    return run.clock.at(run.state.step).resolution != run.log.resolution


def step(run: Run) -> None:
    """One optimizer step, and a line in the log now and then."""
    settings = run.clock.at(run.state.step)
    if size_changes(run):
        look_at_steps(run)  # steps of the old size are no part of the warm-up
        if run.makes_kernels and run.status.phase != Phase.COMPILING:
            run.status.enter(Phase.COMPILING)
    sums = train_step(run.state, run.execution, run.batches, run.config, settings, run.world)
    run.log.add(run.state.step, settings, sums)
    run.status.step = run.state.step
    if run.status.phase == Phase.COMPILING:
        run.status.enter(Phase.TRAINING)
    run.status.tick()
    run.console.step(run.state.step)
    if run.log.is_warm_up or run.state.step % run.config.log_every_steps == 0:
        look_at_steps(run, until=run.state.step - 1)  # wait for the look before this one


def look_at_steps(run: Run, *, until: int = 0) -> None:
    """Begin to send the sums of the pending steps to the host, and report the steps whose sums are there.

    Steps up to `until` are reported in any case, and waited for.
    """
    if run.log.pending:
        saves = {
            "checkpoint/lag_seconds": run.checkpointer.lag_seconds,
            "checkpoint/stall_seconds": run.checkpointer.take_stall_seconds(),
        }
        run.state.seconds += run.log.look(saves, run.state.loss_scale())
    report_steps(run, until)


def report_steps(run: Run, until: int) -> None:
    """Steps that have arrived, to metrics and console; up to `until` in any case.

    Raises UserError on a bad loss, in the main process: on a GPU the others read it sooner or later than that one does.
    """
    for rows in run.log.read(until):
        for row in rows:
            if run.world.is_main and not math.isfinite(row["train/loss"]):
                raise UserError(
                    f"the loss of step {row['step']} is {row['train/loss']}: it must be finite; lower --optim.peak-lr "
                    f"(now {run.config.optim.peak_lr}) or train in bf16 or fp32, under a new RUN= or from an older "
                    'step: make checkpoints ARGS="rewind STEP"'
                )
            run.metrics.add(row["step"], row)
        if means := summary(rows):
            run.console.log(rows[-1]["step"], means)


def save(run: Run, *, is_best: bool = False) -> None:
    """Begin a save; training goes on at once. In fp16 it first waits for the steps so far, which set the scale.

    When its copy is done, its metrics go first, then the checkpoint.

    The order is: rows of its steps, their segment, the message to the uploader. So every step of a checkpoint is in
    the store before its manifest is, and a state with a bad loss is never handed over.
    """
    look_at_steps(run)
    metrics = partial(write_metrics, run, run.state.step)
    run.checkpointer.save(run.state.step, run.state.counters(), is_best=is_best, before_sending=metrics)


def write_metrics(run: Run, until: int) -> None:
    """A segment with all steps up to `until`."""
    report_steps(run, until)
    run.metrics.flush()


def settle_steps(run: Run) -> None:
    """Wait until the device has done all steps, and report them. What comes now counts in no step's time."""
    run.state.seconds += run.log.seconds_until_done()
    look_at_steps(run, until=run.state.step)


def validate(run: Run) -> bool:
    """Score model and averages on every validation image, and save.

    Returns False where it was interrupted in any process: then it is void in all of them.
    """
    state, models = run.state, run.state.models()
    settle_steps(run)
    run.checkpointer.poll(wait=True)
    run.status.enter(Phase.EVALUATING)
    if state.swa is not None and "val_swa" in models and not renew(run, state.swa.model):
        return False
    for model in models.values():
        share_buffers(model, run.world)
    sums = {}
    try:
        with run.interruption.raises():
            sums = evaluate(
                models, run.data.open("val", run.config.data.val_resize), run.config, run.world, run.status.tick
            )
    except Interrupted:
        pass  # the other processes have to hear of it first
    if any_of(not sums, run.world):
        return False
    state.validated, state.scores = state.step, scores(sums, run.world)
    run.metrics.add(state.step, state.scores)
    run.console.scores(state.step, state.scores)
    best = best_of(state.scores, state.step)
    if is_best := best["top1"] > state.best["top1"]:
        state.best = best
    save(run, is_best=is_best)
    empty_cache(run.world)  # the blocks of a validation have other sizes
    run.log.restart_clock()
    run.status.enter(Phase.TRAINING)
    return True


def renew(run: Run, mean: nn.Module) -> bool:
    """Give the mean of the last epochs' weights BatchNorm statistics of its own.

    Returns False where it was interrupted in any process: then it has to be done again, in all of them.
    """
    taken = -1  # batches
    try:
        with run.interruption.raises(), open_norm_loader(run) as batches:
            taken = renew_norms(mean, batches, run.config, run.world, run.clock.total_steps, run.status.tick)
    except Interrupted:
        pass  # the other processes have to hear of it first
    if any_of(taken < 0, run.world):
        return False
    share_norms(mean, run.world, taken)
    return True


def finish(run: Run) -> tuple[Exit, str]:
    """The last save, for which a signal leaves less time; and the result, if the last validation counts."""
    state, total = run.state, run.clock.total_steps
    settle_steps(run)
    run.metrics.flush()
    run.status.enter(Phase.SAVING)
    deadline = Deadline(run.env.deadline, run.interruption, alive=run.status.tick)
    try:
        run.checkpointer.save_last(state.step, state.counters(), deadline)
    except StoreError:
        if not run.interruption.requested:
            raise
        return Exit.INTERRUPTED, f"step {state.step} of {total} is handed over"  # the uploader tries a while longer
    reason = early_end(run)
    if state.validated < total and not reason:
        return Exit.INTERRUPTED, f"step {state.step} of {total} is saved"
    saved = run.checkpointer
    put_result(run.channel, run.env, run.clock, state, saved.committed, saved.committed_sha256)
    if reason:
        run.console.say(f"the run ends at step {state.step} of {total}: {reason}")
        return Exit.FINISHED, f"the run ended early, after {state.step} steps of {total}: {reason}"
    return Exit.FINISHED, f"{total} steps are done"


def main(config: Config) -> int:
    env = RunEnv.from_environ(os.environ)
    crash = partial(leave_exit, attempt_dir(env), CRASH, lost_partner=True)
    try:
        # Left only after the outcome is: a process that loses its partner must not be the first to tell.
        with join(config, crash) as world:
            interruption = Interruption()  # before, a signal ends this process at once: there is nothing to save
            return tell_outcome(lambda: train(config, env, world, interruption), attempt_dir(env), world)
    except MachineError as error:  # of the meeting
        crash(str(error))
        return CRASH


if __name__ == "__main__":
    raise SystemExit(main(CONFIG))
