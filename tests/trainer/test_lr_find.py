"""The range test of learning rates: what it tries, what it suggests, what it leaves, and how it ends."""

from __future__ import annotations

import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.trainer.lab import CONFIG, WORLD, Lab
from tests.trainer.standins import StandInData
from trainer import lr_find
from trainer.contract import Exit, RunEnv, UserError
from trainer.learning.schedule import Settings
from trainer.learning.step import train_step
from trainer.lr_find import HIGHEST_RATE, LOWEST_RATE, RangeTest, has_diverged, rates_of
from trainer.process.interruption import Interrupted

STEPS = 6


@pytest.fixture
def env(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> RunEnv:
    monkeypatch.setattr(lr_find, "stage_data", lambda *arguments: StandInData())
    return RunEnv.from_environ(lab.environ)


def figures(env: RunEnv) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(env.scratch_dir, "lr-find/custom.json").read_text())
    return found


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb"])
def test_every_step_trains_the_runs_own_start_with_a_larger_rate_and_nothing_is_saved(
    lab: Lab, env: RunEnv, name: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[Settings] = []
    step = train_step

    def stepped(*arguments: Any) -> torch.Tensor:
        given.append(arguments[4])
        return step(*arguments)

    monkeypatch.setattr(lr_find, "train_step", stepped)
    config = replace(CONFIG, optim=replace(CONFIG.optim, name=name))
    assert lr_find.find_rate(config, env, WORLD, lab.interruption, STEPS) == Exit.FINISHED
    found = figures(env)
    rates = [settings.lr for settings in given]
    assert (rates[0], len(set(rates))) == (LOWEST_RATE, len(rates))
    assert rates == sorted(rates)
    assert found["rates"] == rates[: len(found["rates"])]
    assert len(found["rates"]) == len(found["losses"]) == len(found["smoothed"])
    assert all(map(math.isfinite, found["losses"]))
    assert found["losses"][0] == pytest.approx(math.log(2), abs=0.3)  # of the start, with two classes
    assert (found["config"]["optim"]["name"], found["ended"]) in {
        (name, "all rates were tried"), (name, f"the loss diverged at {rates[-1]:.2g}")
    }  # fmt: skip
    assert not list(lab.store.list(""))
    with Image.open(Path(env.scratch_dir, "lr-find/custom.png")) as plot:
        assert plot.width > 300
    said = capsys.readouterr().out
    assert str(Path(env.scratch_dir, "lr-find/custom.png")) in said


def test_ctrl_c_ends_it_after_the_step_and_shows_what_is_there(
    lab: Lab, env: RunEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, done = train_step, list[int]()

    def stepped(*arguments: Any) -> torch.Tensor:
        done.append(1)
        if len(done) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return step(*arguments)

    monkeypatch.setattr(lr_find, "train_step", stepped)
    assert lr_find.find_rate(CONFIG, env, WORLD, lab.interruption, STEPS) == Exit.FINISHED
    found = figures(env)
    assert len(found["losses"]) == 3
    assert found["ended"].startswith("stopped at ")
    assert found["suggestion"] is None
    assert Path(env.scratch_dir, "lr-find/custom.png").exists()


def test_a_stop_before_the_first_step_leaves_nothing(lab: Lab, env: RunEnv) -> None:
    lab.interruption.requested = True
    with pytest.raises(Interrupted):
        lr_find.find_rate(CONFIG, env, WORLD, lab.interruption, STEPS)
    assert not Path(env.scratch_dir, "lr-find").exists()


def test_a_loss_that_is_not_finite_ends_it_and_is_no_figure(
    lab: Lab, env: RunEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums = iter([torch.tensor([loss * 4, 0, 0, 4]) for loss in (2.0, 1.9, 1.8, math.nan, 1.0)])
    monkeypatch.setattr(lr_find, "train_step", lambda *arguments: next(sums))
    lr_find.find_rate(CONFIG, env, WORLD, lab.interruption, STEPS)
    found = figures(env)
    assert found["losses"] == pytest.approx([2.0, 1.9, 1.8])
    assert found["ended"] == f"the loss diverged at {rates_of(STEPS)[3]:.2g}"


def test_more_images_in_a_step_than_there_are_is_refused(lab: Lab, env: RunEnv) -> None:
    with pytest.raises(UserError, match="--global-batch-size 400 is more than the 8 training images"):
        lr_find.find_rate(
            replace(CONFIG, global_batch_size=400, device_batch_size=400), env, WORLD, lab.interruption, STEPS
        )


def test_several_processes_are_refused_before_anything_is_staged(lab: Lab, env: RunEnv) -> None:
    with pytest.raises(UserError, match="one process, and here are 2"):
        lr_find.try_rates(CONFIG, env, replace(WORLD, size=2), lab.interruption, STEPS)


def curve(turn: float, *, depth: float = 3.0, noise: float = 0.05) -> RangeTest:
    """A loss that falls to 2 at the rate `turn` and rises again, with noise that is the same each time."""
    rates = rates_of(200)
    chance = torch.Generator().manual_seed(0)
    losses = [
        2 + min(depth, depth * abs(math.log10(rate / turn)) / 2) + noise * float(torch.randn((), generator=chance))
        for rate in rates
    ]
    return RangeTest(rates=rates, losses=tuple(losses))


@pytest.mark.parametrize("turn", [1e-3, 0.1, 1.0])
def test_the_suggestion_is_the_rate_up_to_which_the_loss_falls(turn: float) -> None:
    rate, why = curve(turn).suggestion()
    assert rate == pytest.approx(turn, rel=0.3)
    assert rate == float(f"{rate:.2g}")
    assert "Smith" in why


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (curve(HIGHEST_RATE), "the loss still falls at 10"),
        (curve(0.1, depth=0.0), "no rate lowers the loss"),
        (RangeTest(rates=rates_of(200)[:3], losses=(2.0, 1.0, 0.5)), "3 steps are too few"),
        (RangeTest(rates=(), losses=()), "0 steps are too few"),
    ],
)
def test_where_the_losses_show_no_rate_none_is_suggested_and_why_is_said(found: RangeTest, why: str) -> None:
    rate, said = found.suggestion()
    assert rate is None
    assert why in said


def test_divergence_is_a_loss_that_is_not_finite_or_far_above_the_lowest_and_the_first() -> None:
    assert has_diverged([2.0, math.inf])
    assert not has_diverged([2.0, 1.0])
    assert not has_diverged([2.0, *[0.1] * 6, *[1.0] * 6])  # ten times the lowest, and below the first
    assert has_diverged([2.0, *[0.4] * 6, *[3.0] * 6])
    assert not has_diverged([2.0, *[0.4] * 6, 3.0])  # one batch alone says nothing
