"""TrivialAugment and RandAugment: every operation, its magnitudes and the choice among them against torchvision's."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandAugment, TrivialAugmentWide
from torchvision.transforms import functional as transforms
from torchvision.transforms.autoaugment import _apply_op

from trainer.data.augment.policies import (
    BINS,
    GEOMETRIC,
    OPERATIONS,
    PIXELWISE,
    SIGNED,
    apply_policy,
    choose_operations,
    inverse_matrices,
    magnitude_table,
    policy_draws,
    warp,
)
from trainer.recipes.config import RegularizeConfig

pytestmark = pytest.mark.slow

TRIVIAL, RAND = RegularizeConfig(augment="trivial"), RegularizeConfig(augment="rand")
POLICIES = {"trivial": TRIVIAL, "rand": RAND, "rand of 3": RegularizeConfig(augment="rand", rand_ops=3)}


@cache
def samples(height: int = 48, width: int = 41) -> Tensor:
    """(8, height, width, 3) uint8: photographs, grey, pale and dark ones, noise, a single value, and two values."""
    photographs = [image[200 : 200 + height, 300 : 300 + width] for image in load_sample_images().images]
    flower, temple = (torch.from_numpy(image.copy()) for image in photographs)
    noise = torch.randint(0, 256, flower.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    grey = temple.float().mean(2, keepdim=True).byte().expand(-1, -1, 3)
    single, two = torch.full_like(noise, 77), noise // 128 * 200
    return torch.stack([flower, temple, grey, flower // 8 + 200, temple // 16, noise, single, two])


def uniforms(images: int, reg: RegularizeConfig, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((images, policy_draws(reg)))


def theirs(images: Tensor, name: str, magnitude: float) -> Tensor:
    """torchvision's operation on (…, H, W, 3) images."""
    return _apply_op(images.movedim(-1, -3), name, magnitude, InterpolationMode.NEAREST, None).movedim(-3, -1)


def signed_magnitudes(policy: str, name: str, height: int, width: int) -> Iterator[float]:
    op = OPERATIONS.index(name)
    for magnitude in magnitude_table(policy, height, width)[op]:
        yield from (magnitude, -magnitude) if SIGNED[op] else (magnitude,)


@pytest.mark.parametrize("size", [(224, 224), (96, 128)])
def test_operations_magnitudes_and_signs_are_those_of_torchvision(size: tuple[int, int]) -> None:
    for policy, space in (
        ("trivial", TrivialAugmentWide()._augmentation_space(BINS)),
        ("rand", RandAugment()._augmentation_space(BINS, size)),
    ):
        assert tuple(space) == OPERATIONS
        table = magnitude_table(policy, *size)
        for op, (magnitudes, signed) in enumerate(space.values()):
            assert table[op].tolist() == magnitudes.expand(BINS).tolist()
            assert SIGNED[op] == signed


@pytest.mark.parametrize("policy", ["trivial", "rand"])
@pytest.mark.parametrize("name", PIXELWISE)
def test_an_operation_on_pixels_is_exactly_that_of_torchvision(name: str, policy: str) -> None:
    images = samples()
    for magnitude in signed_magnitudes(policy, name, *images.shape[1:3]):
        found = PIXELWISE[name](images, torch.full((len(images), 1, 1, 1), magnitude, dtype=torch.float64))
        assert found.dtype == torch.uint8
        assert torch.equal(found, theirs(images, name, magnitude)), magnitude


@pytest.mark.parametrize("name", PIXELWISE)
def test_every_image_of_a_group_has_its_own_magnitude(name: str) -> None:
    images = samples()
    magnitudes = magnitude_table("trivial", 48, 41)[OPERATIONS.index(name), 3 : 3 + len(images)]
    found = PIXELWISE[name](images, torch.from_numpy(magnitudes)[:, None, None, None])
    for image, mine, magnitude in zip(images, found, magnitudes, strict=True):
        assert torch.equal(mine, theirs(image, name, magnitude))


@pytest.mark.parametrize("policy", ["trivial", "rand"])
@pytest.mark.parametrize("size", [(48, 48), (33, 40)])
@pytest.mark.parametrize("name", GEOMETRIC)
def test_geometry_is_that_of_torchvision_but_where_float32_cannot_tell_two_pixels_apart(
    name: str, size: tuple[int, int], policy: str
) -> None:
    """A source point on the border between two pixels belongs to either; torchvision's rounding picks one."""
    image = samples(*size)[5]  # noise: no two neighbours are alike
    magnitudes = np.array(list(signed_magnitudes(policy, name, *size)))
    matrices = inverse_matrices(np.full(len(magnitudes), OPERATIONS.index(name)), magnitudes, *size)
    found = warp(image.expand(len(magnitudes), -1, -1, -1), torch.from_numpy(matrices))
    for mine, magnitude in zip(found, magnitudes, strict=True):
        x, y = source_points(name, magnitude, *size)
        clear = np.ones(size, np.bool_)
        for points in (x, y):
            clear &= abs(points - np.rint(points)) > 1e-4
        differs = (mine != theirs(image, name, magnitude)).any(2).numpy()
        assert not (differs & clear).any(), magnitude
        if name.startswith("Translate"):
            assert not differs.any()
        candidates = [pixels_at(image, x + dx, y + dy) for dx in (-1e-4, 1e-4) for dy in (-1e-4, 1e-4)]
        assert torch.stack([(mine == candidate).all(2) for candidate in candidates]).any(0).all(), magnitude


def source_points(name: str, magnitude: float, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y of where each pixel's centre comes from, by torchvision's formula in float64: (H, W) each."""
    y, x = np.mgrid[:height, :width] + 0.5
    match name:
        case "ShearX":
            return x + magnitude * y, y
        case "ShearY":
            return x, y + magnitude * x
        case "TranslateX":
            return x - int(magnitude), y
        case "TranslateY":
            return x, y - int(magnitude)
    a, b, _, c, d, _ = transforms._get_inverse_affine_matrix([0, 0], -magnitude, [0, 0], 1.0, [0.0, 0.0])
    x, y = x - width / 2, y - height / 2
    return a * x + b * y + width / 2, c * x + d * y + height / 2


def pixels_at(image: Tensor, x: np.ndarray, y: np.ndarray) -> Tensor:
    """The pixels that hold these points, 0 outside."""
    height, width = image.shape[:2]
    column, row = np.floor(x).astype(int), np.floor(y).astype(int)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    found = image.numpy()[row.clip(0, height - 1), column.clip(0, width - 1)]
    return torch.from_numpy(found * inside[..., None])


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_does_to_each_image_what_torchvision_does_with_the_same_choices(
    policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reg, images = POLICIES[policy], samples().repeat(25, 1, 1, 1)
    draws = uniforms(len(images), reg)
    whole = TrivialAugmentWide() if reg.augment == "trivial" else RandAugment(reg.rand_ops, reg.rand_magnitude)
    same, seen = 0, set()
    for image, row, mine in zip(images, draws, apply_policy(images, draws, reg), strict=True):
        answers = []
        for which, strength, sign in row.reshape(-1, 3):
            op = int(which * 14)
            ranged = reg.augment == "trivial" and OPERATIONS[op] not in ("Identity", "AutoContrast", "Equalize")
            answers += [op] + [int(strength * 31)] * ranged + [int(sign < 0.5)] * bool(SIGNED[op])
            seen.add(op)
        replay = map(torch.tensor, [[answer] for answer in answers])
        monkeypatch.setattr(torch, "randint", lambda *_, replay=replay, **__: next(replay))
        same += torch.equal(mine, whole(image.movedim(-1, 0)).movedim(0, -1))
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
        for op, name in enumerate(OPERATIONS):
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


def assert_share(count: int, total: int, share: float) -> None:
    """Within five standard deviations of the binomial distribution."""
    assert abs(count - share * total) <= 5 * np.sqrt(total * share * (1 - share)), (count, total, share)


@pytest.mark.parametrize("draw", [0.0, np.nextafter(1.0, 0.0)])
@pytest.mark.parametrize("policy", POLICIES)
def test_the_ends_of_the_unit_interval_choose_the_first_and_the_last(policy: str, draw: float) -> None:
    reg = POLICIES[policy]
    for ops, magnitudes in choose_operations(np.full((2, policy_draws(reg)), draw), reg, 224, 224):
        assert ops.tolist() == [0 if draw == 0 else 13] * 2
        assert abs(magnitudes).tolist() == [0, 0]  # neither identity nor equalize has one


@pytest.mark.parametrize("policy", POLICIES)
def test_what_happens_to_an_image_depends_on_its_own_draws_alone(policy: str) -> None:
    reg, images = POLICIES[policy], samples().repeat(8, 1, 1, 1)
    draws = uniforms(len(images), reg, seed=1)
    before, found = images.clone(), apply_policy(images, draws, reg)
    assert found.shape == images.shape
    assert found.is_contiguous()
    assert torch.equal(images, before)  # they may be the loader's
    assert not torch.equal(found, images)
    assert torch.equal(apply_policy(images, draws, reg), found)
    some = np.random.default_rng(2).permutation(len(images))[:23]
    assert torch.equal(apply_policy(images[some], draws[some], reg), found[some])
    for i in range(len(images)):
        assert torch.equal(apply_policy(images[i : i + 1], draws[i : i + 1], reg)[0], found[i])


def test_without_a_policy_a_batch_passes_untouched_and_needs_no_draws() -> None:
    assert policy_draws(RegularizeConfig()) == 0
    images = samples()
    assert apply_policy(images, uniforms(len(images), RegularizeConfig()), RegularizeConfig()) is images
