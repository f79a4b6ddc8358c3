"""The statistics of averaged weights: against torch's `update_bn`, and over several processes."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from trainer.data.augment.batch import draws_per_image, normalise
from trainer.data.reading.loader import Batch
from trainer.learning import norms as module
from trainer.learning.batch_counts import take_over_counts
from trainer.learning.groups import freeze
from trainer.learning.norms import renew_norms, share_norms
from trainer.learning.world import World
from trainer.recipes.config import Config, ModelConfig, RegularizeConfig

CPU = World(0, 0, 1, torch.device("cpu"))
TWO = World(0, 0, 2, CPU.device), World(1, 1, 2, CPU.device)
CONFIG = Config(precision="fp32", model=ModelConfig(num_classes=4))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5, affine=False)
    )


def batches(config: Config = CONFIG) -> list[Batch]:
    rng = np.random.default_rng(0)
    draws = draws_per_image(config.regularize)
    return [
        Batch(
            torch.from_numpy(rng.integers(0, 256, (6, 12, 12, 3), dtype=np.uint8)), torch.arange(6) % 4,
            torch.zeros(6, dtype=torch.bool), rng.random((6, draws)),
        )
        for _ in range(3)
    ]  # fmt: skip


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.named_buffers() if "running" in name}


def test_the_statistics_are_those_of_torch_s_update_and_nothing_else_changes() -> None:
    """torch lets dropout work meanwhile. What follows it would have other statistics than in a validation."""
    theirs = network()
    theirs[2] = nn.Identity()
    update_bn((normalise(batch.images, CONFIG.data) for batch in batches()), theirs)
    ours = network()
    take_over_counts(ours)
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items() if "running" not in name}
    seen: list[int] = []
    renew_norms(ours, batches(), CONFIG, CPU, 0, seen.append)
    for name, tensor in statistics(theirs).items():
        torch.testing.assert_close(statistics(ours)[name], tensor, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(ours.state_dict()[name], tensor) for name, tensor in before.items())
    assert ours.training
    assert [norm.momentum for norm in ours if isinstance(norm, nn.BatchNorm2d)] == [0.1, 0.1]
    assert seen == [6, 6, 6]


def test_they_do_not_depend_on_what_was_there_and_are_a_function_of_seed_and_step() -> None:
    config = replace(CONFIG, regularize=RegularizeConfig(mixup_alpha=1.0))

    def renewed(seed: int, step: int, *, spoil: bool = False) -> dict[str, Tensor]:
        model = network()
        if spoil:
            for tensor in statistics(model):
                model.get_buffer(tensor).fill_(torch.nan)
        renew_norms(model, batches(), replace(config, seed=seed), CPU, step, lambda images: None)
        return statistics(model)

    once, again, other, later = renewed(1, 5), renewed(1, 5, spoil=True), renewed(2, 5), renewed(1, 6)
    assert all(torch.equal(again[name], tensor) for name, tensor in once.items())
    assert not all(torch.equal(other[name], tensor) for name, tensor in once.items())
    assert not all(torch.equal(later[name], tensor) for name, tensor in once.items())


def test_frozen_layers_keep_their_statistics() -> None:
    model = network()
    freeze(model, 1)
    before = statistics(model)
    renew_norms(model, batches(), CONFIG, CPU, 0, lambda images: None)
    same = {name: torch.equal(tensor, before[name]) for name, tensor in statistics(model).items()}
    assert same == {"1.running_mean": True, "1.running_var": True, "4.running_mean": False, "4.running_var": False}


def test_where_all_layers_are_frozen_nothing_is_taken_and_nothing_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mean over nothing would be no number."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3))
    freeze(model, 1)
    before = statistics(model)
    monkeypatch.setattr(module, "all_sum", lambda mine, world: 3 * mine)
    taken = renew_norms(model, batches(), CONFIG, CPU, 0, lambda images: None)
    share_norms(model, TWO[0], taken)
    assert taken == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in statistics(model).items())


def test_a_network_without_statistics_takes_no_batches() -> None:
    renew_norms(nn.Linear(2, 2), iter([]), CONFIG, CPU, 0, lambda images: None)
    share_norms(nn.Linear(2, 2), World(0, 0, 2, CPU.device), 0)


def test_several_processes_have_the_mean_of_their_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is what one process finds in all of their batches, where one has more of them than the other, too. Each
    batch is mixed by its number."""
    config = replace(CONFIG, global_batch_size=18, device_batch_size=6, regularize=RegularizeConfig(mixup_alpha=1.0))
    all_of_them = batches(config) + batches(config)[::-1]  # of two steps
    models = [copy.deepcopy(network()) for _ in range(3)]
    shares = all_of_them, [all_of_them[number] for number in (0, 2, 3, 5)], [all_of_them[number] for number in (1, 4)]
    for model, mine, world in zip(models, shares, (CPU, *TWO), strict=True):
        assert renew_norms(model, mine, config, world, 0, lambda images: None) == len(mine)
    alone, *both = models
    sums: list[Tensor] = []

    def heard(mine: Tensor, world: World) -> Tensor:
        sums.append(mine)
        return mine

    monkeypatch.setattr(module, "all_sum", heard)
    for model, mine, world in zip(both, shares[1:], TWO, strict=True):
        share_norms(model, world, len(mine))
    monkeypatch.setattr(module, "all_sum", lambda mine, world: sums[0] + sums[1])
    share_norms(both[0], TWO[0], 4)
    for name, tensor in statistics(alone).items():
        torch.testing.assert_close(statistics(both[0])[name], tensor, rtol=1e-5, atol=1e-6)
