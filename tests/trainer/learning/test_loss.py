"""The losses against torch's and timm's, and against Composer's formula; the weights of classes against theirs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight
from timm.loss.binary_cross_entropy import BinaryCrossEntropy
from torch import Tensor, nn

from trainer.data.augment.batch import mix, one_hot
from trainer.learning.forward import Forward
from trainer.learning.loss import balanced_weights, mean_loss
from trainer.recipes.config import Config, DataConfig, RegularizeConfig

N, CLASSES = 6, 5
LABELS = torch.tensor([0, 3, 1, 3, 4, 2])
PLAIN = one_hot(LABELS, CLASSES)


def random_logits() -> Tensor:
    return torch.randn(N, CLASSES, generator=torch.Generator().manual_seed(0), requires_grad=True)


def mixed() -> Tensor:
    """Targets as mixup makes them."""
    reg = RegularizeConfig(mixup_alpha=1.0)
    return mix(torch.zeros(N, 3, 2, 2), PLAIN, reg, np.random.default_rng(3))[1]


def same(ours: Tensor, theirs: Tensor, logits: Tensor) -> None:
    """The same loss, and the same gradient."""
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    for a, b in zip(torch.autograd.grad(ours, logits), torch.autograd.grad(theirs, logits), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_cross_entropy_is_torch_s_bit_for_bit() -> None:
    logits = random_logits()
    ours = mean_loss(logits, mixed(), RegularizeConfig(label_smoothing=0.1))
    assert torch.equal(ours, F.cross_entropy(logits, mixed(), label_smoothing=0.1))


@pytest.mark.parametrize("sums", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 0.2])
def test_binary_cross_entropy_is_timm_s_for_labels(sums: bool, threshold: float) -> None:
    logits = random_logits()
    reg = RegularizeConfig(loss="bce" if sums else "bce_mean", label_smoothing=0.1, bce_threshold=threshold)
    theirs = BinaryCrossEntropy(smoothing=0.1, target_threshold=threshold or None, sum_classes=sums)
    same(mean_loss(logits, PLAIN, reg), theirs(logits, LABELS), logits)


@pytest.mark.parametrize("threshold", [0.0, 0.2])
def test_binary_cross_entropy_is_timm_s_for_mixed_targets(threshold: float) -> None:
    """timm's mixup smooths before it mixes. Both are linear, so it is the same afterwards."""
    logits, targets = random_logits(), mixed()
    assert len(set(targets.flatten().tolist())) > 2
    reg = RegularizeConfig(loss="bce", label_smoothing=0.1, bce_threshold=threshold)
    theirs = BinaryCrossEntropy(target_threshold=threshold or None, sum_classes=True)
    same(mean_loss(logits, targets, reg), theirs(logits, targets * 0.9 + 0.1 / CLASSES), logits)


def test_the_sum_over_classes_is_composer_s() -> None:
    """Its loss sums over everything and divides by the number of images; its smoothing is that of cross entropy."""
    logits, targets = random_logits(), mixed()
    smooth = targets * (1 - 0.08) + 0.08 / CLASSES
    theirs = F.binary_cross_entropy_with_logits(logits, smooth, reduction="sum") / N
    same(mean_loss(logits, targets, RegularizeConfig(loss="bce", label_smoothing=0.08)), theirs, logits)


def test_balanced_weights_are_scikit_learn_s_and_one_on_average_over_the_images() -> None:
    labels = np.array([0] * 7 + [1] * 2 + [2] * 1)
    theirs = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    ours = balanced_weights(labels, 4)
    np.testing.assert_allclose(ours[:3].numpy(), theirs, rtol=1e-6)
    assert ours[3] == 0  # no image has this class
    assert ours[labels].mean() == pytest.approx(1.0)


def test_weighted_cross_entropy_is_torch_s() -> None:
    """torch divides by the sum of the weights, which is the number of images over all of them, but not in a batch."""
    logits, weights = random_logits(), torch.tensor([0.5, 2.0, 1.0, 0.25, 3.0])
    theirs = F.cross_entropy(logits, LABELS, weight=weights, reduction="sum") / N
    same(mean_loss(logits, PLAIN, RegularizeConfig(label_smoothing=0.0), weights), theirs, logits)


@pytest.mark.parametrize("loss", ["cross_entropy", "bce", "bce_mean"])
def test_a_weight_multiplies_the_loss_of_its_images_and_a_mixed_one_has_the_mean(loss: str) -> None:
    logits, targets, weights = random_logits(), mixed(), torch.tensor([0.5, 2.0, 1.0, 0.25, 3.0])
    reg = RegularizeConfig(loss=loss)  # type: ignore[arg-type]
    one_by_one = [mean_loss(logits[i : i + 1], targets[i : i + 1], reg) * (targets[i] @ weights) for i in range(N)]
    same(mean_loss(logits, targets, reg, weights), torch.stack(one_by_one).mean(), logits)


def test_a_forward_pass_has_the_loss_and_the_weights_of_its_config() -> None:
    """And none runs without the weights that its config asks for."""
    reg = RegularizeConfig(loss="bce", class_weights="balanced", label_smoothing=0.08)
    config, cpu = Config(precision="fp32", regularize=reg, data=DataConfig(mean=(0, 0, 0), std=(1, 1, 1))), "cpu"
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, CLASSES))
    images, weights = torch.rand(N, 3, 2, 2), torch.tensor([0.5, 2.0, 1.0, 0.25, 3.0])
    forward = Forward(model, config, torch.device(cpu), weights)
    loss, sums = forward(images, torch.zeros(N, dtype=torch.bool), LABELS, PLAIN)
    assert torch.equal(loss, mean_loss(model(images), PLAIN, reg, weights))
    assert sums.tolist()[0] == pytest.approx(float(loss.detach()) * N)
    assert "class_weights" not in forward.state_dict()
    with pytest.raises(AssertionError):
        Forward(model, config, torch.device(cpu))
