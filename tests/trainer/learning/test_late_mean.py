"""What is in the mean of the last epochs' weights, also where the number of epochs changes under way."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainer.learning.nets import small_model
from trainer.data.reading.order import MIX, generator
from trainer.learning import step as module
from trainer.learning.schedule import Clock
from trainer.learning.state import State, make_state
from trainer.learning.step import train_step
from trainer.learning.world import World
from trainer.recipes.config import AverageConfig, Config, ModelConfig

CPU = World(0, 0, 1, torch.device("cpu"))
CONFIG = Config(
    epochs=10, global_batch_size=1, device_batch_size=1, precision="fp32",
    model=ModelConfig(name="small", num_classes=4), average=AverageConfig(late_epochs=3),
)  # fmt: skip
STEPS_PER_EPOCH, MICRO_BATCHES = 2, 4


class Numbering:
    """An execution whose update makes all weights the number of the epoch that it is in, from 1."""

    def __init__(self, state: State):
        self.state = state
        self.drawn: list[float] = []

    def forward_backward(self, inputs: Any, *, is_last: bool) -> Tensor:
        self.drawn.append(float(torch.rand(())))
        return torch.zeros(4)

    def update(self, lr: float) -> None:
        with torch.no_grad():
            for parameter in self.state.model.parameters():
                parameter.fill_(self.state.step // STEPS_PER_EPOCH + 1)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.learning.state.build_model", lambda config, initialise: small_model())
    monkeypatch.setattr(module, "inputs_of", lambda *arguments: None)


def begin() -> State:
    return make_state(CONFIG, CPU.device, initialise=True)


def go_on(state: State, epochs: int, until: int, world: World = CPU) -> list[float]:
    """Train a run of so many epochs until the end of one. Returns a random number of each step."""
    config = replace(CONFIG, epochs=epochs, global_batch_size=MICRO_BATCHES, device_batch_size=1)
    clock, execution = Clock.of(config, STEPS_PER_EPOCH * MICRO_BATCHES), Numbering(state)
    while state.step < until * STEPS_PER_EPOCH:
        train_step(state, execution, itertools.repeat(None), config, clock.at(state.step), world)  # type: ignore[arg-type]
    return execution.drawn


def mean(state: State) -> float:
    assert state.swa is not None
    values = torch.cat([parameter.detach().flatten() for parameter in state.swa.model.parameters()])
    torch.testing.assert_close(values, values[:1].expand_as(values))
    return float(values[0])


@pytest.mark.parametrize(
    ("before", "stop", "after", "expected"),
    [
        (10, 5, 10, (8, 9, 10)),  # the same
        (20, 8, 9, (9,)),  # shortened before the mean had moved: it is no random start
        (10, 9, 11, (10, 11)),  # 8 was in it, and is no late epoch any more
        (10, 10, 12, (11, 12)),
        (12, 10, 11, (10, 11)),
        (10, 9, 20, (18, 19, 20)),
        (12, 11, 12, (10, 11, 12)),
    ],
)
def test_with_another_number_of_epochs_all_weights_in_the_mean_are_late_ones_with_equal_shares(
    before: int, stop: int, after: int, expected: tuple[int, ...]
) -> None:
    state = begin()
    go_on(state, before, stop)
    counters = state.counters()
    state.swa_step = state.swa_count = 0
    state.load_counters(counters)
    go_on(state, after, after)
    assert mean(state) == pytest.approx(sum(expected) / len(expected))


def test_a_mean_that_an_older_version_began_goes_on() -> None:
    state = begin()
    go_on(state, 10, 9)
    state.load_counters({name: value for name, value in state.counters().items() if name != "swa_count"})
    assert "swa_count" not in state.counters()
    go_on(state, 10, 10)
    assert mean(state) == pytest.approx(9)


def test_each_micro_batch_draws_its_own_numbers_whichever_process_computes_it() -> None:
    def drawn(rank: int, size: int) -> Iterator[float]:
        state = begin()
        state.draws = True
        return iter(go_on(state, 4, 2, World(rank, rank, size, CPU.device)))

    alone = list(drawn(0, 1))
    assert len(set(alone)) == len(alone) == 2 * STEPS_PER_EPOCH * MICRO_BATCHES
    for size in (2, 3):
        several = [drawn(rank, size) for rank in range(size)]
        steps = range(2 * STEPS_PER_EPOCH)
        assert [next(several[number % size]) for _ in steps for number in range(MICRO_BATCHES)] == alone
    torch.manual_seed(int(generator(MIX, CONFIG.seed, 0, 0).integers(2**63)))
    assert alone[0] == float(torch.rand(())), "so a run without accumulation draws as it did in older versions"
