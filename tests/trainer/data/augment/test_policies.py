"""TrivialAugment and RandAugment: every operation, its magnitudes and the choice among them against torchvision's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode, RandAugment, TrivialAugmentWide

from tests.trainer.data.augment.samples import assert_share, samples, signed_magnitudes, theirs
from trainer.data.augment.pixels import PIXELWISE
from trainer.data.augment.policies import (
    BINS,
    SIGNED,
    TORCHVISION,
    apply_policy,
    choose_operations,
    magnitude_table,
    policy_draws,
)
from trainer.recipes.config import RegularizeConfig

pytestmark = pytest.mark.slow

MEAN = (0.485, 0.456, 0.406)
TRIVIAL, RAND = RegularizeConfig(augment="trivial"), RegularizeConfig(augment="rand")
POLICIES = {"trivial": TRIVIAL, "rand": RAND, "rand of 3": RegularizeConfig(augment="rand", rand_ops=3)}
BILINEAR = {"bilinear": RegularizeConfig(augment="trivial", interpolation="bilinear")}
TIMM = {
    "timm": RegularizeConfig(augment="timm_rand", interpolation="bilinear", rand_magnitude=6, rand_std=0.5),
    "timm nearest": RegularizeConfig(augment="timm_rand", rand_magnitude=6),
}


def uniforms(images: int, reg: RegularizeConfig, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((images, policy_draws(reg)))


@pytest.mark.parametrize("size", [(224, 224), (96, 128)])
def test_operations_magnitudes_and_signs_are_those_of_torchvision(size: tuple[int, int]) -> None:
    for policy, space in (
        ("trivial", TrivialAugmentWide()._augmentation_space(BINS)),
        ("rand", RandAugment()._augmentation_space(BINS, size)),
    ):
        assert tuple(space) == TORCHVISION
        table = magnitude_table(policy, *size)
        for op, (magnitudes, signed) in enumerate(space.values()):
            assert table[op].tolist() == magnitudes.expand(BINS).tolist()
            assert SIGNED[op] == signed


@pytest.mark.parametrize("policy", ["trivial", "rand"])
@pytest.mark.parametrize("name", TORCHVISION[6:])
def test_an_operation_on_pixels_is_exactly_that_of_torchvision(name: str, policy: str) -> None:
    images = samples()
    for magnitude in signed_magnitudes(policy, name, *images.shape[1:3]):
        found = PIXELWISE[name](images, torch.full((len(images), 1, 1, 1), magnitude, dtype=torch.float64))
        assert found.dtype == torch.uint8
        assert torch.equal(found, theirs(images, name, magnitude)), magnitude


@pytest.mark.parametrize("name", TORCHVISION[6:])
def test_every_image_of_a_group_has_its_own_magnitude(name: str) -> None:
    images = samples()
    magnitudes = magnitude_table("trivial", 48, 41)[TORCHVISION.index(name), 3 : 3 + len(images)]
    found = PIXELWISE[name](images, torch.from_numpy(magnitudes)[:, None, None, None])
    for image, mine, magnitude in zip(images, found, magnitudes, strict=True):
        assert torch.equal(mine, theirs(image, name, magnitude))


@pytest.mark.parametrize("policy", POLICIES | BILINEAR)
def test_a_policy_does_to_each_image_what_torchvision_does_with_the_same_choices(
    policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reg, images = (POLICIES | BILINEAR)[policy], samples().repeat(25, 1, 1, 1)
    draws, mode = uniforms(len(images), reg), InterpolationMode(reg.interpolation)
    whole = TrivialAugmentWide(interpolation=mode)
    if reg.augment == "rand":
        whole = RandAugment(reg.rand_ops, reg.rand_magnitude, interpolation=mode)
    rounding = int(policy in BILINEAR)  # levels
    same, seen = 0, set()
    for image, row, mine in zip(images, draws, apply_policy(images, draws, reg, MEAN), strict=True):
        answers = []
        for which, strength, sign in row.reshape(-1, 3):
            op = int(which * 14)
            ranged = reg.augment == "trivial" and TORCHVISION[op] not in ("Identity", "AutoContrast", "Equalize")
            answers += [op] + [int(strength * 31)] * ranged + [int(sign < 0.5)] * bool(SIGNED[op])
            seen.add(op)
        replay = map(torch.tensor, [[answer] for answer in answers])
        monkeypatch.setattr(torch, "randint", lambda *_, replay=replay, **__: next(replay))
        same += bool((mine.int() - whole(image.movedim(-1, 0)).movedim(0, -1).int()).abs().max() <= rounding)
    monkeypatch.undo()
    assert seen == set(range(14))
    assert same >= 0.98 * len(images)  # a few shears and rotations have source points between two pixels: see above


@pytest.mark.parametrize("policy", POLICIES)
def test_operations_magnitudes_and_signs_are_drawn_evenly(policy: str) -> None:
    reg, images = POLICIES[policy], 200_000
    chosen = choose_operations(uniforms(images, reg), reg, 224, 224)
    assert len(chosen) == (1 if reg.augment == "trivial" else reg.rand_ops)
    table = magnitude_table(reg.augment, 224, 224)
    for ops, magnitudes in chosen:
        for op, name in enumerate(TORCHVISION):
            drawn = magnitudes[ops == op]
            assert_share(len(drawn), images, 1 / 14)
            if SIGNED[op]:
                assert_share((drawn > 0).sum(), (drawn != 0).sum(), 1 / 2)
            values, counts = np.unique(abs(drawn), return_counts=True)
            expected = table[op] if reg.augment == "trivial" else table[op, [reg.rand_magnitude]]
            levels, ways = np.unique(expected, return_counts=True)
            assert values.tolist() == levels.tolist(), name
            for count, way in zip(counts, ways, strict=True):
                assert_share(count, len(drawn), way / len(expected))
    if len(chosen) > 1:  # one operation says nothing of the next
        assert_share((chosen[0][0] == chosen[1][0]).sum(), images, 1 / 14)


@pytest.mark.parametrize("draw", [0.0, np.nextafter(1.0, 0.0)])
@pytest.mark.parametrize("policy", POLICIES)
def test_the_ends_of_the_unit_interval_choose_the_first_and_the_last(policy: str, draw: float) -> None:
    reg = POLICIES[policy]
    for ops, magnitudes in choose_operations(np.full((2, policy_draws(reg)), draw), reg, 224, 224):
        assert ops.tolist() == [0 if draw == 0 else 13] * 2
        assert abs(magnitudes).tolist() == [0, 0]  # neither identity nor equalize has one


@pytest.mark.parametrize("policy", POLICIES | BILINEAR | TIMM)
def test_what_happens_to_an_image_depends_on_its_own_draws_alone(policy: str) -> None:
    reg, images = (POLICIES | BILINEAR | TIMM)[policy], samples().repeat(8, 1, 1, 1)
    draws = uniforms(len(images), reg, seed=1)
    before, found = images.clone(), apply_policy(images, draws, reg, MEAN)
    assert found.shape == images.shape
    assert found.is_contiguous()
    assert torch.equal(images, before)  # they may be the loader's
    assert not torch.equal(found, images)
    assert torch.equal(apply_policy(images, draws, reg, MEAN), found)
    some = np.random.default_rng(2).permutation(len(images))[:23]
    assert torch.equal(apply_policy(images[some], draws[some], reg, MEAN), found[some])
    for i in range(len(images)):
        assert torch.equal(apply_policy(images[i : i + 1], draws[i : i + 1], reg, MEAN)[0], found[i])


def test_without_a_policy_a_batch_passes_untouched_and_needs_no_draws() -> None:
    assert policy_draws(RegularizeConfig()) == 0
    images = samples()
    assert apply_policy(images, uniforms(len(images), RegularizeConfig()), RegularizeConfig(), MEAN) is images
