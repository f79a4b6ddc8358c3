"""What a training step launches on a GPU, counted on a CPU with every layer of ResNet-50."""

from __future__ import annotations

import pytest
import torchvision

from benchmarks.step_probe import bare, count, narrow, product


@pytest.mark.parametrize("case", ["plain", "augmented"])
def test_a_step_launches_less_than_a_loop_around_the_network_alone(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.models, "get_model", narrow)
    alone, whole = bare(), product(case)
    for step in (alone, whole):
        step()  # the first one makes what later ones keep
    assert count(whole)["kernels"] < count(alone)["kernels"]
