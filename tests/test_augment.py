"""What happens to a batch on the device: against torchvision's transforms, and against the papers' formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as transforms

from trainer.config import DataConfig, RegularizeConfig
from trainer.data.augment import cut_box, mix, one_hot, to_input

MIXUP, CUTMIX = RegularizeConfig(mixup_alpha=0.4), RegularizeConfig(cutmix_alpha=1.0)
BOTH = RegularizeConfig(mixup_alpha=0.4, cutmix_alpha=1.0)


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
