"""What a network costs: as torchvision counts it, with BlurPool, too."""

from __future__ import annotations

import pytest
import torch
import torchvision

from trainer.export.costs import count_gmacs, count_parameters
from trainer.learning.blur_pool import blur_pools
from trainer.recipes.networks import network_of


@pytest.mark.parametrize("network", ["resnet50", "vit_b_32", "efficientnet_b0", "shufflenet_v2_x0_5"])
def test_parameters_and_multiplications_are_those_that_torchvision_states(network: str) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(network).eval()
    stated = next(iter(torchvision.models.get_model_weights(network))).meta
    assert count_parameters(model) == stated["num_params"]
    assert count_gmacs(model, 224) == pytest.approx(network_of(network).gmacs, rel=0.01, abs=6e-4)


def test_a_blur_multiplies_nothing_and_a_side_counts_twice() -> None:
    with torch.device("meta"):
        plain, blurred = (torchvision.models.resnet18().eval() for _ in range(2))
    blur_pools(blurred, "convs")
    assert count_gmacs(blurred, 64) == count_gmacs(plain, 64)
    assert count_gmacs(plain, 128) == pytest.approx(4 * count_gmacs(plain, 64), rel=0.01)
