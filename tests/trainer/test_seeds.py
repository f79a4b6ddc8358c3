"""`--seed` changes all that is random, and nothing else is: weights, order, crops, flips, policy, mixing, dropout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.trainer.lab import CONFIG, WORLD
from tests.trainer.standins import StandInData
from trainer.data.reading.loader import Job, Loader
from trainer.data.reading.order import MIX, generator
from trainer.learning import state as states
from trainer.learning.execution import Execution
from trainer.learning.forward import inputs_of
from trainer.learning.schedule import Clock
from trainer.learning.state import make_state
from trainer.learning.step import train_step
from trainer.recipes.config import Config, RegularizeConfig
from trainer.setup import open_loader

AUGMENTED = replace(
    CONFIG, regularize=RegularizeConfig(augment="trivial", mixup_alpha=0.2, cutmix_alpha=1.0, erasing_probability=0.5)
)


def loader_of(config: Config) -> Loader:
    return open_loader(config, StandInData(), Clock.of(config, 8), WORLD, range(6))  # type: ignore[arg-type]


def weights(config: Config) -> Any:
    return next(iter(make_state(config, WORLD.device, initialise=True).model.parameters())).detach().numpy()


def order(config: Config) -> Any:
    with loader_of(config) as loader:
        return np.concatenate([job.indices for job in islice(loader.jobs, 4)])


def by_image(config: Config, drawn_of: Callable[[Job, int], Any]) -> Any:
    """What is drawn for each image of an epoch, sorted by image: the order of the steps has no part in it."""
    with loader_of(config) as loader:
        found = {
            index: drawn_of(job, row)
            for job in islice(loader.jobs, 4)
            for row, index in enumerate(job.indices.tolist())
        }
    return np.stack([found[index] for index in sorted(found)])


def crop(job: Job, row: int) -> Any:
    job.write(out := np.empty((32, 32, 3), np.uint8), row)
    return out


crops = partial(by_image, drawn_of=crop)
flips = partial(by_image, drawn_of=lambda job, row: job.flips[row])
policies = partial(by_image, drawn_of=lambda job, row: job.draws[row])


def mixing(config: Config) -> Any:
    """Of the same images, cropped and augmented by seed 0."""
    with loader_of(replace(config, seed=0)) as loader:
        batch = next(iter(loader))
        mixed = [inputs_of(batch, config, partial(generator, MIX, config.seed, 1, step)) for step in range(3)]
        return np.concatenate([inputs.targets.numpy() for inputs in mixed])


@pytest.mark.parametrize(
    "drawn",
    [weights, order, crops, flips, policies, mixing],
    ids=["weights", "order", "crops", "flips", "policies", "mixing"],
)
def test_another_seed_draws_other_numbers_and_the_same_seed_the_same(drawn: Callable[[Config], Any]) -> None:
    one, same, other = (drawn(replace(AUGMENTED, seed=seed)) for seed in (0, 0, 1))
    assert np.array_equal(one, same)
    assert one.shape == other.shape
    assert not np.array_equal(one, other)


class Dropping(nn.Module):
    """A network with dropout; where its weights start has no part in what a test compares."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)
        nn.init.ones_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(nn.functional.dropout(images.mean((2, 3)), 0.5, self.training))
        return logits


def test_another_seed_drops_other_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "build_model", lambda *arguments, **more: Dropping())
    with loader_of(CONFIG) as loader:  # the batches of seed 0 for all of them
        given = [replace(batch, images=batch.images.clone()) for batch in islice(loader, 4)]

    def losses(seed: int) -> list[float]:
        config = replace(CONFIG, seed=seed)
        state = make_state(config, WORLD.device, initialise=True)
        assert state.draws
        execution, taken = Execution.of(config, state, WORLD, print), iter(given)
        settings = Clock.of(config, 8).at(0)
        return [train_step(state, execution, taken, config, settings, WORLD)[0].item() for _ in range(2)]

    assert losses(0) == losses(0) != losses(1)
