"""BatchNorm's counts of batches: raised outside of the layers, and the same as torch's own."""

from __future__ import annotations

import copy

import torch
from torch import nn

from trainer.learning.average import Average
from trainer.learning.batch_counts import raise_counts, take_over_counts


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4, momentum=None)
    )


def test_statistics_and_counts_are_those_of_torch_in_training_and_in_evaluation() -> None:
    theirs = network()
    ours = copy.deepcopy(theirs)
    counts = take_over_counts(ours)
    average = Average(ours)
    for step in range(1, 4):
        for micro in range(2):
            images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(10 * step + micro))
            assert torch.equal(ours(images), theirs(images))
        raise_counts(counts, 2)
        average.update(0.0)
    assert set(ours.state_dict()) == set(theirs.state_dict())
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name
        assert not name.endswith("tracked") or average.model.state_dict()[name] == 6
    assert torch.equal(ours.eval()(images), theirs.eval()(images))


def test_a_layer_that_needs_its_count_keeps_counting() -> None:
    model = network()
    assert len(take_over_counts(model)) == 2
    model(torch.zeros(2, 3, 8, 8))
    assert [int(layer.num_batches_tracked) for layer in list(model)[1:]] == [0, 0, 1]  # type: ignore[arg-type]


def test_a_network_without_batchnorm_has_no_counts() -> None:
    raise_counts(take_over_counts(nn.Sequential(nn.Linear(2, 2))), 1)
