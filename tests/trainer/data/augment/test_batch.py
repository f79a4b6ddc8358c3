"""What happens to a batch on the device: against torchvision's transforms, and against the papers' formulas."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import RandomErasing
from torchvision.transforms import functional as transforms

from trainer.data.augment.batch import (
    ERASE_RATIO,
    ERASE_SCALE,
    cut_box,
    draws_per_image,
    erase,
    erasing_boxes,
    mix,
    one_hot,
    to_augmented_input,
    to_input,
)
from trainer.data.augment.policies import apply_policy, policy_draws
from trainer.recipes.config import DataConfig, RegularizeConfig

MIXUP, CUTMIX = RegularizeConfig(mixup_alpha=0.4), RegularizeConfig(cutmix_alpha=1.0)
BOTH = RegularizeConfig(mixup_alpha=0.4, cutmix_alpha=1.0)
ERASING = RegularizeConfig(erasing_probability=0.4)
ERASING_ALWAYS = RegularizeConfig(erasing_probability=1.0)


def batch(classes: int = 6, pixels: int = 16) -> tuple[Tensor, Tensor]:
    """Image i has the value i everywhere and the label i, so that a pixel tells whose it is."""
    values = torch.arange(classes, dtype=torch.float32)
    return values[:, None, None, None].expand(-1, 3, pixels, pixels).clone(), one_hot(torch.arange(classes), classes)


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_the_input_is_that_of_torchvision_flipped_where_asked() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 9, 7, 3), dtype=np.uint8)
    pixels[0], pixels[1] = 0, 255
    flips = torch.tensor([False, True, True, False, True])
    data = DataConfig()
    found = to_input(torch.from_numpy(pixels), flips, data)
    assert found.shape == (5, 3, 9, 7)
    assert found.dtype == torch.float32
    for i, flip in enumerate(flips):
        image = Image.fromarray(pixels[i])
        expected = transforms.to_tensor(transforms.hflip(image) if flip else image)
        expected = transforms.normalize(expected, list(data.mean), list(data.std))
        torch.testing.assert_close(found[i], expected, rtol=0, atol=1e-6)


def test_the_input_is_channels_last_in_memory_and_the_batch_is_left_alone() -> None:
    images = torch.randint(0, 256, (4, 8, 8, 3), dtype=torch.uint8)
    before = images.clone()
    found = to_input(images, torch.tensor([True] * 4), DataConfig())
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert not found.is_contiguous()
    assert torch.equal(images, before)


def test_each_config_is_normalised_by_its_own_numbers() -> None:
    images, flips = torch.full((1, 2, 2, 3), 255, dtype=torch.uint8), torch.zeros(1, dtype=torch.bool)
    for mean, std in ((0.0, 1.0), (0.5, 0.5), (0.5, 0.25)):
        found = to_input(images, flips, DataConfig(mean=(mean,) * 3, std=(std,) * 3))
        torch.testing.assert_close(found, torch.full((1, 3, 2, 2), (1 - mean) / std))


def test_an_input_made_while_training_learns_though_the_first_was_made_for_validation() -> None:
    """Whatever is kept from a call in inference mode must not spoil a backward pass."""
    data = DataConfig(mean=(0.11, 0.12, 0.13))  # of its own, so that nothing is kept from other tests
    images, flips = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8), torch.zeros(2, dtype=torch.bool)
    with torch.inference_mode():
        to_input(images, flips, data)
    layer = torch.nn.Conv2d(3, 2, 3)
    layer(to_input(images, flips, data)).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.abs().sum() > 0


def uniforms(images: int, reg: RegularizeConfig) -> np.ndarray:
    return rng(0).random((images, draws_per_image(reg)))


def test_where_nothing_is_asked_for_the_augmented_input_is_the_plain_one_and_needs_no_draws() -> None:
    images, reg = torch.randint(0, 256, (4, 8, 8, 3), dtype=torch.uint8), RegularizeConfig()
    flips = torch.tensor([True, False, True, False])
    assert draws_per_image(reg) == 0
    found = to_augmented_input(images, flips, uniforms(4, reg), DataConfig(), reg)
    assert torch.equal(found, to_input(images, flips, DataConfig()))


@pytest.mark.parametrize("augment", ["trivial", "rand"])
def test_an_image_is_flipped_then_changed_by_the_policy_then_normalised_then_erased(
    augment: Literal["trivial", "rand"],
) -> None:
    reg, data = RegularizeConfig(augment=augment, erasing_probability=0.5), DataConfig()
    images = torch.randint(0, 256, (32, 40, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before, draws, flips = images.clone(), uniforms(32, reg), torch.arange(32) % 2 == 0
    found = to_augmented_input(images, flips, draws, data, reg)
    split = policy_draws(reg)
    boxes = erasing_boxes(draws[:, split:], reg, 32, 40).T
    for i, (left, top, right, bottom) in enumerate(boxes.tolist()):
        image = images[i].flip(1) if flips[i] else images[i]
        image = apply_policy(image[None], draws[i : i + 1, :split], reg, data.mean)[0]
        expected = transforms.normalize(transforms.to_tensor(image.numpy()), list(data.mean), list(data.std))
        expected = transforms.erase(expected, top, left, bottom - top, right - left, torch.zeros(()))
        torch.testing.assert_close(found[i], expected, rtol=0, atol=1e-6)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, before)  # the loader's memory is not written to


def test_without_erasing_a_batch_passes_untouched() -> None:
    images, _ = batch()
    assert erase(images, uniforms(6, RegularizeConfig()), RegularizeConfig()) is images


def test_exactly_the_box_is_erased_in_every_colour() -> None:
    images = torch.rand(50, 3, 24, 37, generator=torch.Generator().manual_seed(0)) + 1
    draws = uniforms(50, ERASING)
    found, boxes = erase(images, draws, ERASING), erasing_boxes(draws, ERASING, 37, 24)
    for image, before, (left, top, right, bottom) in zip(found, images, boxes.T.tolist(), strict=True):
        expected = before.clone()
        expected[:, top:bottom, left:right] = 0
        assert torch.equal(image, expected)
    assert torch.equal(erase(images[7:8], draws[7:8], ERASING)[0], found[7])  # whatever else is in the batch


@pytest.mark.parametrize(("width", "height"), [(64, 64), (96, 40)])
def test_boxes_are_those_of_torchvision_in_distribution(width: int, height: int) -> None:
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = np.array([RandomErasing.get_params(image, ERASE_SCALE, ERASE_RATIO, [0.0])[:4] for _ in range(3000)]).T
    left, top, right, bottom = erasing_boxes(uniforms(30_000, ERASING_ALWAYS), ERASING_ALWAYS, width, height)
    ours = np.stack([top, left, bottom - top, right - left])
    limit = 1.95 * np.sqrt(1 / 3000 + 1 / 30_000)  # Kolmogorov and Smirnov's, at one in a thousand
    for mine, reference in zip([*ours, ours[2] * ours[3], ours[0] + ours[2], ours[1] + ours[3]],
                               [*theirs, theirs[2] * theirs[3], theirs[0] + theirs[2], theirs[1] + theirs[3]],
                               strict=True):  # fmt: skip
        assert distance(mine, reference) < limit
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (right <= width).all()
    assert (bottom <= height).all()
    assert (ours[2] < height).all()
    assert (ours[3] < width).all()


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference between two empirical distribution functions."""
    points = np.unique(np.concatenate([one, other]))
    first, second = (np.searchsorted(np.sort(values), points, side="right") / len(values) for values in (one, other))
    return float(abs(first - second).max())


def test_erasing_happens_as_often_as_asked() -> None:
    left, _, right, _ = erasing_boxes(uniforms(40_000, ERASING), ERASING, 64, 64)
    assert (right > left).mean() == pytest.approx(0.4, abs=5 * np.sqrt(0.24 / 40_000))


def test_an_image_that_no_box_fits_stays_whole_and_one_that_a_later_box_fits_gets_that() -> None:
    draws = np.zeros((2, draws_per_image(ERASING_ALWAYS)))
    draws[:, 3:] = np.nextafter(1.0, 0.0)  # the largest area at the tallest ratio is higher than the image
    draws[1, 3 + 4], draws[1, 3 + 10 + 4] = 0.0, 0.5  # the fifth try: the smallest area, square
    boxes = erasing_boxes(draws, ERASING_ALWAYS, 100, 100).T
    assert boxes[0, 0] == boxes[0, 2]
    assert boxes[1].tolist() == [0, 0, 14, 14]  # 2 % of the area: a side of 14.1


def test_the_device_is_never_asked_for_anything() -> None:
    """Tensors on the meta device have shapes but no values: whoever wants one, be it a group's size, fails."""
    reg = RegularizeConfig(augment="rand", erasing_probability=0.5)
    images = torch.empty(128, 32, 40, 3, dtype=torch.uint8, device="meta")  # enough for every operation to be drawn
    flips = torch.empty(128, dtype=torch.bool, device="meta")
    found = to_augmented_input(images, flips, uniforms(128, reg), DataConfig(), reg)
    assert (found.shape, found.device.type) == ((128, 3, 32, 40), "meta")


def test_targets_are_one_hot_rows() -> None:
    assert one_hot(torch.tensor([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert one_hot(torch.tensor([2]), 3).dtype == torch.float32


def test_without_mixing_a_batch_passes_untouched() -> None:
    images, targets = batch()
    random = rng(0)
    mixed, mixed_targets = mix(images, targets, RegularizeConfig(), random)
    assert mixed is images
    assert mixed_targets is targets
    assert random.random() == rng(0).random()  # nothing was drawn


@pytest.mark.parametrize("seed", range(5))
def test_mixup_makes_one_convex_combination_of_images_and_targets(seed: int) -> None:
    _, targets = batch()
    images = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    mixed, mixed_targets = mix(images, targets, MIXUP, rng(seed))
    share = mixed_targets[0, 0]  # of the image's own label
    assert 0 <= share <= 1
    torch.testing.assert_close(mixed_targets, share * targets + (1 - share) * targets.roll(1, 0))
    torch.testing.assert_close(mixed, share * images + (1 - share) * images.roll(1, 0))
    assert not torch.equal(mixed, images)


@pytest.mark.parametrize("pixels", [16, 15, 33])
def test_the_area_that_cutmix_pastes_is_its_share_of_the_target(pixels: int) -> None:
    images, targets = batch(pixels=pixels)
    before, shares = images.clone(), set()
    for seed in range(20):
        mixed, mixed_targets = mix(images, targets, CUTMIX, rng(seed))
        for i in range(len(images)):
            own, partner = mixed[i] == i, mixed[i] == (i - 1) % 6
            assert (own | partner).all()
            kept = own.sum(dim=(1, 2))
            assert (kept == kept[0]).all()  # the same box in every colour
            assert mixed_targets[i, i] == pytest.approx(int(kept[0]) / pixels**2, abs=1e-6)
            rows, columns = partner[0].any(1).sum(), partner[0].any(0).sum()
            assert int(rows * columns) == int(partner[0].sum())  # a rectangle
        torch.testing.assert_close(mixed_targets.sum(1), torch.ones(6))
        shares.add(round(float(mixed_targets[0, 0]), 4))
    assert len(shares) > 10
    assert torch.equal(images, before)  # the loader's memory is not written to


@pytest.mark.parametrize("reg", [MIXUP, CUTMIX, BOTH])
def test_the_same_generator_mixes_in_the_same_way_and_another_in_another(reg: RegularizeConfig) -> None:
    images, targets = batch()
    first, again = (mix(images, targets, reg, rng(7)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    others = [mix(images, targets, reg, rng(seed))[1] for seed in range(10)]
    assert sum(torch.equal(other, first[1]) for other in others) == 1


def test_with_both_each_occurs_in_about_half_of_the_batches() -> None:
    images, targets = batch()
    mixes = [mix(images, targets, BOTH, rng(seed))[0] for seed in range(200)]
    whole = sum(bool((mixed == mixed.round()).all()) for mixed in mixes)  # a pixel that is of one image alone
    assert 70 < whole < 130


@pytest.mark.parametrize(("width", "height"), [(16, 16), (33, 20), (1, 9)])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.75, 1.0])
def test_the_cut_box_stays_inside_and_has_the_expected_mean_area(width: int, height: int, share: float) -> None:
    random = rng(0)
    boxes = np.array([cut_box(random, width, height, share) for _ in range(4000)])
    left, top, right, bottom = boxes.T
    assert ((left >= 0) & (left <= right) & (right <= width)).all()
    assert ((top >= 0) & (top <= bottom) & (bottom <= height)).all()
    areas = (right - left) * (bottom - top)

    def side(length: int) -> float:
        """The mean over all centres of the clipped box's side."""
        half = int(0.5 * np.sqrt(1 - share) * length)
        return float(np.mean([min(x + half, length) - max(x - half, 0) for x in range(length)]))

    expected = side(width) * side(height)  # the two coordinates of the centre are independent
    assert areas.mean() == pytest.approx(expected, abs=5 * areas.std() / np.sqrt(len(areas)) + 1e-9)
    assert areas.max() <= (1 - share) * width * height + 1e-9
    if share == 0 and width > 1:
        assert areas.max() >= 0.9 * width * height
