"""The moving average of the weights against Composer's formula and torchvision's class, step by step."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from trainer.learning.average import Average
from trainer.learning.schedule import Clock
from trainer.recipes.config import AverageConfig, Config, RegularizeConfig

STEPS_PER_EPOCH, EPOCHS = 10, 6


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def moving(model: nn.Module) -> Iterator[int]:
    """The numbers of the steps, from 1; before each, weights and statistics move, as training moves them."""
    rng = torch.Generator().manual_seed(1)
    for step in range(1, EPOCHS * STEPS_PER_EPOCH + 1):
        with torch.no_grad():
            for tensor in model.state_dict().values():
                if tensor.is_floating_point():
                    tensor.add_(torch.randn(tensor.shape, generator=rng))
                else:
                    tensor.add_(1)
        yield step


def clock(average: AverageConfig, ema_decay: float = 0.0) -> Clock:
    config = Config(
        epochs=EPOCHS, global_batch_size=1, average=average, regularize=RegularizeConfig(ema_decay=ema_decay)
    )
    assert config.keeps_ema
    return Clock.of(config, STEPS_PER_EPOCH)


def averaged(average: AverageConfig, ema_decay: float = 0.0) -> Iterator[tuple[int, nn.Module, dict[str, Tensor]]]:
    """After each step: its number, the model, and our average."""
    model, at = network(), clock(average, ema_decay).at
    ours = Average(model)
    for step in moving(model):
        if (decay := at(step - 1).ema_decay) < 1:  # as train_step does
            ours.update(decay)
        yield step, model, ours.model.state_dict()


def close(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    for name, tensor in ours.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, theirs[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("half_life", "every", "start"), [(10.0, 1, 0.0), (100.0, 20, 0.0), (8.0, 4, 2.0)])
def test_a_half_life_without_a_warm_up_is_composer_s(half_life: float, every: int, start: float) -> None:
    """It begins as a copy, after the first step from which it may; it moves after steps that `every` divides."""
    smoothing, theirs = 2 ** -(every / half_life), dict[str, Tensor]()
    config = AverageConfig(half_life_steps=half_life, every_steps=every, start_epoch=start, warms_up=False)
    for step, model, ours in averaged(config):
        now = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        if not theirs and step >= start * STEPS_PER_EPOCH:
            theirs = now
        if theirs and step % every == 0:
            theirs = {name: old * smoothing + (1 - smoothing) * now[name] for name, old in theirs.items()}
        if theirs:
            close(ours, theirs)


@pytest.mark.parametrize("every", [1, 5])
def test_a_decay_without_a_warm_up_is_torchvision_s_with_buffers(every: int) -> None:
    """Its reference moves the average after the first of `every` steps and ours after the last: told in the docs."""
    model_of: list[AveragedModel] = []
    for step, model, ours in averaged(AverageConfig(every_steps=every, warms_up=False), ema_decay=0.9):
        if not model_of:
            model_of.append(
                AveragedModel(model, avg_fn=lambda old, new, n: 0.9 * old + 0.1 * new, use_buffers=True),
            )
            model_of[0].update_parameters(model)  # the first is a copy
        elif step % every == 0:
            model_of[0].update_parameters(model)
        close(ours, model_of[0].module.state_dict())


def test_until_its_start_the_average_is_a_copy_and_then_it_begins_to_lag() -> None:
    for warms_up in (False, True):
        for step, model, ours in averaged(AverageConfig(half_life_steps=9, start_epoch=1.5, warms_up=warms_up)):
            is_copy = all(torch.equal(ours[name], tensor) for name, tensor in model.state_dict().items())
            assert is_copy == (step <= 15)


def test_between_its_moves_the_average_stands_still() -> None:
    before: dict[str, Tensor] = {}
    for step, _, ours in averaged(AverageConfig(half_life_steps=9, every_steps=4)):
        moved = bool(before) and not all(torch.equal(ours[name], old) for name, old in before.items())
        assert moved == (step % 4 == 0 and bool(before))
        before = {name: tensor.clone() for name, tensor in ours.items()}


def test_after_a_half_life_half_of_the_old_weights_is_left() -> None:
    at = clock(AverageConfig(half_life_steps=12, every_steps=3, warms_up=False)).at
    left = math.prod(at(step - 1).ema_decay for step in range(3, 15))  # four moves
    assert left == pytest.approx(0.5)


def test_the_defaults_decay_as_every_version_did() -> None:
    """A run begun by an older commit goes on with the same bits."""
    at = clock(AverageConfig(), ema_decay=0.7).at
    assert [at(step - 1).ema_decay for step in range(1, 60)] == [
        min(0.7, (1 + step) / (10 + step)) for step in range(1, 60)
    ]
    late = clock(AverageConfig(start_epoch=2), ema_decay=0.7).at
    assert [late(step).ema_decay for step in (18, 19, 20, 21)] == [0.0, 0.0, 2 / 11, 3 / 12]
