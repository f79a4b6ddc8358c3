"""The learning rate of each step against torch's, torchvision's, timm's and FFCV's. OneCycle is in `test_optimizer`."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import nn
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, MultiStepLR, SequentialLR

from trainer.contract import UserError
from trainer.learning.schedule import Clock
from trainer.recipes.config import AverageConfig, Config, OptimConfig, RegularizeConfig, ScheduleConfig

EPOCHS, PER_EPOCH, PEAK = 12, 7, 0.7
STEPS = EPOCHS * PER_EPOCH


def rates(schedule: ScheduleConfig, epochs: int = EPOCHS, per_epoch: int = PER_EPOCH) -> list[float]:
    """Ours, of every step."""
    config = Config(epochs=epochs, global_batch_size=4, optim=OptimConfig(peak_lr=PEAK), schedule=schedule)
    clock = Clock.of(config, 4 * per_epoch + 3)
    return [clock.at(step).lr for step in range(clock.total_steps)]


def optimizer() -> torch.optim.SGD:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=PEAK)


def of_torch(make: Any, count: int) -> list[float]:
    """`count` learning rates of the scheduler that `make` gives for an optimizer."""
    stepped = optimizer()
    scheduler, found = make(stepped), []
    for _ in range(count):
        found.append(float(stepped.param_groups[0]["lr"]))
        stepped.step()
        scheduler.step()
    return found


def in_epochs(of_each: list[float]) -> list[float]:
    return [lr for lr in of_each for _ in range(PER_EPOCH)]


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step:UserWarning")  # SequentialLR's own
def test_a_warm_up_and_a_cosine_by_epoch_are_those_of_torchvision_s_reference() -> None:
    schedule = ScheduleConfig(kind="cosine", warmup_epochs=5, warmup_start=0.01, final_share=0.1, by_epoch=True)
    theirs = of_torch(
        lambda o: SequentialLR(
            o,
            [
                LinearLR(o, start_factor=0.01, total_iters=5),
                CosineAnnealingLR(o, T_max=EPOCHS - 5, eta_min=0.1 * PEAK),
            ],
            milestones=[5],
        ),
        EPOCHS,
    )
    assert rates(schedule) == pytest.approx(in_epochs(theirs), rel=1e-9)


@pytest.mark.parametrize("by_epoch", [False, True])
@pytest.mark.parametrize("overlaps", [False, True])
def test_a_warm_up_and_a_cosine_are_those_of_timm(by_epoch: bool, overlaps: bool) -> None:
    """timm's scripts let the cosine count from the first epoch; its `warmup_prefix` lets it count from the warm-up."""
    per = 1 if by_epoch else PER_EPOCH
    after = EPOCHS if overlaps else EPOCHS - 5
    scheduler = CosineLRScheduler(
        stepped := optimizer(), t_initial=after * per, lr_min=1e-5, warmup_t=5 * per, warmup_lr_init=1e-4,
        warmup_prefix=not overlaps, t_in_epochs=by_epoch,
    )  # fmt: skip
    theirs = []
    for step in range(EPOCHS * per):
        scheduler.step(step) if by_epoch else scheduler.step_update(step)
        theirs.append(stepped.param_groups[0]["lr"])
    schedule = ScheduleConfig(
        kind="cosine", warmup_epochs=5, warmup_start=1e-4 / PEAK, final_share=1e-5 / PEAK, warmup_overlaps=overlaps,
        by_epoch=by_epoch,
    )  # fmt: skip
    assert rates(schedule) == pytest.approx(in_epochs(theirs) if by_epoch else theirs, rel=1e-9)


@pytest.mark.parametrize("peak_epoch", [2, 5])
def test_lines_up_and_down_are_ffcv_s_triangle(peak_epoch: int) -> None:
    """Its script computes the rate at both ends of an epoch, and a line between them (train_imagenet.py)."""

    def at(epoch: int) -> float:
        return float(np.interp(epoch, [0, peak_epoch, EPOCHS], [1e-4 * PEAK, PEAK, 0]))

    steps = np.arange(PER_EPOCH)
    theirs = [np.interp(steps, [0, PER_EPOCH], [at(epoch), at(epoch + 1)]) for epoch in range(EPOCHS)]
    schedule = ScheduleConfig(kind="linear", warmup_epochs=peak_epoch, warmup_start=1e-4)
    assert rates(schedule) == pytest.approx(np.concatenate(theirs).tolist(), rel=1e-9)


def test_steps_down_are_those_of_torch() -> None:
    theirs = of_torch(lambda o: MultiStepLR(o, milestones=[3 * PER_EPOCH, 8 * PER_EPOCH], gamma=0.2), STEPS)
    assert rates(ScheduleConfig(kind="step", decay_epochs=(3, 8), decay_factor=0.2)) == pytest.approx(theirs, rel=1e-9)


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step:UserWarning")
def test_a_constant_rate_with_a_warm_up_and_a_cool_down_is_that_of_torch_s_parts() -> None:
    rise, hold, fall = 2 * PER_EPOCH, 7 * PER_EPOCH, 3 * PER_EPOCH
    theirs = of_torch(
        lambda o: SequentialLR(
            o,
            [
                LinearLR(o, start_factor=0.25, total_iters=rise),
                ConstantLR(o, factor=1.0, total_iters=0),
                LinearLR(o, start_factor=1.0, end_factor=0.1, total_iters=fall),
            ],
            milestones=[rise, rise + hold],
        ),
        STEPS,
    )
    schedule = ScheduleConfig(
        kind="constant", warmup_epochs=2, warmup_start=0.25, cooldown_epochs=3, final_share=0.1
    )  # fmt: skip
    assert rates(schedule) == pytest.approx(theirs, rel=1e-9)
    assert set(rates(ScheduleConfig(kind="constant"))) == {PEAK}


def test_by_epoch_a_rate_is_that_of_the_epoch_s_first_step() -> None:
    for kind in ("one_cycle", "cosine", "linear"):
        schedule = ScheduleConfig(kind=kind)
        each = rates(schedule)
        assert rates(replace(schedule, by_epoch=True)) == in_epochs(each[::PER_EPOCH])
        assert len(set(each)) > EPOCHS


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_every_rate_of_odd_lengths_is_finite_and_within_its_bounds(kind: Any) -> None:
    for warmup, cooldown, epochs in ((0, 0, 1), (0.5, 0.25, 1), (2.3, 0.7, 3), (0, 3, 3)):
        schedule = ScheduleConfig(kind=kind, warmup_epochs=warmup, warmup_start=0.1, final_share=0.01)
        if kind == "constant":
            schedule = replace(schedule, cooldown_epochs=cooldown)
        found = rates(schedule, epochs)
        assert all(math.isfinite(lr) and 0.01 * PEAK <= lr <= PEAK for lr in found)
        assert found[0] == pytest.approx((0.1 if warmup else 1) * PEAK)


@pytest.mark.parametrize(("warmup", "by_epoch", "taken"), [(2.9, False, "8.7 of 9"), (2.1, True, "6.3 of 9")])
def test_a_warm_up_that_leaves_no_step_is_refused_with_the_numbers(warmup: float, by_epoch: bool, taken: str) -> None:
    schedule = ScheduleConfig(kind="cosine", warmup_epochs=warmup, by_epoch=by_epoch)
    with pytest.raises(UserError, match=rf"--schedule.warmup-epochs {warmup} takes {taken} steps: no step would"):
        rates(schedule, epochs=3, per_epoch=3)
    assert max(rates(replace(schedule, warmup_epochs=2), epochs=3, per_epoch=3)) == PEAK


@pytest.mark.parametrize(("every", "start", "left"), [(9, 0.0, 9), (40, 0.0, 9), (4, 1.7, 3)])
def test_an_average_that_would_not_move_is_refused_with_the_numbers(every: int, start: float, left: int) -> None:
    average = AverageConfig(every_steps=every, start_epoch=start)
    config = Config(epochs=3, global_batch_size=1, average=average, regularize=RegularizeConfig(ema_decay=0.9))
    with pytest.raises(
        UserError, match=f"--average.every-steps {every} is no less than the {left} steps of .* 9 in all"
    ):
        Clock.of(config, 3)
    Clock.of(replace(config, average=replace(average, every_steps=left - 1)), 3)
