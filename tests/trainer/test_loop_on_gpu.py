"""The training loop beside a GPU that is far behind: what it waits for, and in which order a save is handed over."""

from __future__ import annotations

import itertools
import json
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainer.cuda import StandInCuda, stand_in_cuda
from tests.trainer.lab import CONFIG, STEPS, Lab
from trainer import train as module
from trainer.contract import Exit, UserError
from trainer.learning.step import train_step
from trainer.learning.world import Wishes, World, all_sum
from trainer.setup import Run
from trainer.telemetry import step_log
from trainer.telemetry.console import Console

LONG_EPOCH = replace(CONFIG, val_every_epochs=3, log_every_steps=100)  # one validation, at the end


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> StandInCuda:
    return stand_in_cuda(monkeypatch)


def before_each_step(lab: Lab, look: Callable[[Run], None]) -> None:
    """`look` is called before each step, and sees what the one before has left."""
    step = module.step

    def watched(run: Run) -> None:
        look(run)
        step(run)

    lab.monkeypatch.setattr(module, "step", watched)


def wait_for_checkpoint(lab: Lab) -> None:
    deadline = time.monotonic() + 10
    while not lab.uploader.steps():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_steps_after_a_save_wait_for_nothing_and_its_metrics_go_before_it(lab: Lab, cuda: StandInCuda) -> None:
    seen: dict[int, tuple[int, int, int]] = {}
    times: list[float] = []

    def look(run: Run) -> None:
        seen[run.state.step] = cuda.waits, cuda.copies, len(lab.uploader.steps())
        times.append(run.state.seconds)
        if run.state.step == 4:
            cuda.finish()
        if run.state.step == 5:
            wait_for_checkpoint(lab)

    before_each_step(lab, look)
    lab.signals = {1: signal.SIGUSR1}  # a save after step 2
    assert lab.train(LONG_EPOCH) == (Exit.FINISHED, "6 steps are done")
    assert [seen[step] for step in (1, 2, 3, 4)] == [(0, 0, 0), (0, 1, 0), (0, 1, 0), (0, 1, 0)]
    first = next(i for i, (kind, _) in enumerate(lab.uploader.events) if kind == "checkpoint")
    segments = [key for kind, key in lab.uploader.events[:first] if kind == "put" and "/metrics/" in key]
    sent = {json.loads(line)["step"] for key in segments for line in lab.store.get(key).splitlines()}
    assert {1, 2} <= sent
    note = lab.uploader.events[first][1]
    assert (note["step"], note["manifest"]["counters"]["step"]) == (2, 2)
    assert note["manifest"]["counters"]["seconds"] == times[2], "and not what the steps took until the copy was done"
    assert [row["step"] for row in lab.rows() if "train/loss" in row] == [1, 2, 3, 4, 5, 6]


def test_a_save_is_handed_over_before_a_validation_begins(lab: Lab, cuda: StandInCuda) -> None:
    def evaluated(*arguments: Any) -> Any:
        wait_for_checkpoint(lab)
        raise UserError("far enough")

    lab.monkeypatch.setattr(module, "evaluate", evaluated)
    lab.signals = {0: signal.SIGUSR1}
    with pytest.raises(UserError, match="far enough"):
        lab.train()
    assert lab.uploader.steps() == [1]


def test_a_save_with_a_bad_loss_is_not_handed_over_once_its_sums_are_here(lab: Lab, cuda: StandInCuda) -> None:
    def poisoned(*arguments: Any) -> Tensor:
        return train_step(*arguments) * (float("nan") if arguments[0].step == 3 else 1.0)

    reached: list[int] = []

    def look(run: Run) -> None:
        reached.append(run.state.step)
        if run.state.step == 4:
            cuda.finish()

    lab.monkeypatch.setattr(module, "train_step", poisoned)
    before_each_step(lab, look)
    lab.signals = {2: signal.SIGUSR1}
    with pytest.raises(UserError, match="the loss of step 3 is nan"):
        lab.train(LONG_EPOCH)
    assert reached == [0, 1, 2, 3, 4], "the poll after the fifth step finds it"
    assert lab.uploader.steps() == []


def test_a_log_line_comes_one_look_later_and_never_drains_the_queue(lab: Lab, cuda: StandInCuda) -> None:
    logged: list[int] = []
    seen: dict[int, tuple[int, bool]] = {}
    log = Console.log

    def watched(console: Console, step: int, means: Any) -> None:
        logged.append(step)
        log(console, step, means)

    def look(run: Run) -> None:
        seen[run.state.step] = max(logged, default=0), cuda.done < cuda.given

    lab.monkeypatch.setattr(Console, "log", watched)
    before_each_step(lab, look)
    lab.train(replace(LONG_EPOCH, log_every_steps=1))
    assert seen == {0: (0, False), 1: (0, True), 2: (0, True), 3: (2, True), 4: (3, True), 5: (4, True)}
    assert logged == [2, 3, 4, 5, 6], "the first step is a warm-up; before the validation all are waited for"


def test_what_the_processes_do_together_does_not_depend_on_how_far_behind_a_gpu_is(
    lab: Lab, cuda: StandInCuda, tmp_path_factory: pytest.TempPathFactory
) -> None:
    together: list[tuple[str, int]] = []

    answer = Wishes.answer

    def answered(wishes: Wishes) -> list[bool]:
        found = answer(wishes)
        together.append(("any", len(found)))
        return found

    def added(table: Tensor, world: World) -> Tensor:
        together.append(("sum", len(table)))
        return all_sum(table, world)

    lab.monkeypatch.setattr(Wishes, "answer", answered)
    lab.monkeypatch.setattr(step_log, "all_sum", added)
    found = []
    for finishes_after in (1, 100):
        counter = itertools.count(1)

        def look(run: Run, counter: Any = counter, every: int = finishes_after) -> None:
            if next(counter) % every == 0:
                cuda.finish()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "step", module.step)
            before_each_step(lab, look)
            lab.begin_in(tmp_path_factory.mktemp("run"))
            lab.signals = {1: signal.SIGUSR1, 3: signal.SIGUSR1}
            lab.train(replace(LONG_EPOCH, log_every_steps=3))
        found.append(list(together))
        together.clear()
    assert found[0] == found[1]
    assert sum(steps for kind, steps in found[0] if kind == "sum") == STEPS


def test_the_weights_and_metrics_are_those_of_a_run_without_a_gpu(
    lab: Lab, tmp_path_factory: pytest.TempPathFactory
) -> None:
    def outcome() -> tuple[dict[str, Tensor], list[dict[str, float]]]:
        lab.train()
        losses = [{name: row[name] for name in row if name.startswith(("train/", "val/"))} for row in lab.rows()]
        return lab.weights(), losses

    weights, rows = outcome()
    lab.begin_in(tmp_path_factory.mktemp("gpu"))
    stand_in_cuda(lab.monkeypatch)
    late_weights, late_rows = outcome()
    assert rows == late_rows
    assert all(torch.equal(weights[name], late_weights[name]) for name in weights)
