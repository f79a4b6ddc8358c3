"""Which images a step sees, and where they are cropped: checked by counting, and against torchvision by statistics."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torchvision.transforms import RandomResizedCrop

from trainer.data.sampling import CROP, MIX, ORDER, epoch_order, generator, micro_batches, random_resized_crop

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def test_the_order_is_a_permutation_that_seed_and_epoch_determine() -> None:
    order = epoch_order(3, 5, 1000)
    assert order.dtype == np.int64
    assert sorted(order) == list(range(1000))
    assert (order == epoch_order(3, 5, 1000)).all()
    for other in (epoch_order(3, 6, 1000), epoch_order(4, 5, 1000), epoch_order(5, 3, 1000), np.arange(1000)):
        assert (order == other).mean() < 0.02  # of two random permutations, one place in 1000 agrees


@pytest.mark.parametrize(("world", "accum"), [(1, 1), (2, 1), (4, 1), (8, 1), (1, 8), (2, 4), (4, 2), (1, 2)])
def test_a_step_sees_the_same_images_whatever_world_and_accumulation(world: int, accum: int) -> None:
    global_batch, images = 32, 100
    order = epoch_order(0, 0, images)
    batch = global_batch // (world * accum)
    seen: list[int] = []
    for step in range(images // global_batch):
        shares = [micro_batches(order, step, accum, batch, rank, world) for rank in range(world)]
        assert {share.shape for share in shares} == {(accum, batch)}
        images_of_step = np.concatenate(shares, axis=None).tolist()
        assert set(images_of_step) == set(order[step * global_batch : (step + 1) * global_batch])
        seen += images_of_step
    assert len(seen) == len(set(seen)) == 96  # every image at most once; the rest of an epoch is left out


def test_streams_of_random_numbers_never_meet() -> None:
    corners = (0, 1, 2, 2**24 - 1), (0, 1, 2, 2**36 - 1)
    keys = list(itertools.product((ORDER, CROP, MIX), (0, 1, 2**63 - 1), *corners))
    first = {generator(*key).integers(2**63) for key in keys}
    assert len(first) == len(keys) == 144
    assert generator(CROP, 1, 2, 3).integers(2**63) == generator(CROP, 1, 2, 3).integers(2**63)


def test_neighbouring_streams_are_uniform_and_uncorrelated() -> None:
    draws = np.array([[generator(CROP, seed, 0, i).random() for i in range(1500)] for seed in (0, 1)])
    assert abs(draws.mean() - 0.5) < 0.03
    assert abs(np.corrcoef(draws[0], draws[1])[0, 1]) < 0.1
    assert abs(np.corrcoef(draws[0, 1:], draws[0, :-1])[0, 1]) < 0.1


def crops(width: int, height: int, count: int = 2000) -> np.ndarray:
    """(count, 4) as the loader draws them: one generator for each image."""
    return np.array(
        [random_resized_crop(generator(CROP, 0, 0, i), width, height, SCALE, RATIO) for i in range(count)]
    )  # fmt: skip


def torchvision_crops(width: int, height: int, ratio: tuple[float, float] = RATIO, count: int = 2000) -> np.ndarray:
    torch.manual_seed(0)
    image = torch.empty(1, height, width)  # only its size is read
    drawn = (RandomResizedCrop.get_params(image, list(SCALE), list(ratio)) for _ in range(count))
    return np.array([(left, top, w, h) for top, left, h, w in drawn])


def p_values(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """Of the Kolmogorov-Smirnov test that both are drawn from one distribution."""
    measures = {
        "left": lambda box: box[:, 0],
        "top": lambda box: box[:, 1],
        "width": lambda box: box[:, 2],
        "height": lambda box: box[:, 3],
        "area": lambda box: box[:, 2] * box[:, 3],
        "ratio": lambda box: box[:, 2] / box[:, 3],
    }
    return {name: ks_2samp(measure(ours), measure(theirs)).pvalue for name, measure in measures.items()}


@pytest.mark.parametrize(
    ("width", "height"), [(500, 375), (375, 500), (224, 224), (9, 7), (1200, 256), (600, 60), (60, 600)]
)
def test_crops_are_distributed_as_those_of_torchvision(width: int, height: int) -> None:
    ours, theirs = crops(width, height), torchvision_crops(width, height)
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 2:] >= 1).all()
    assert (ours[:, 0] + ours[:, 2] <= width).all()
    assert (ours[:, 1] + ours[:, 3] <= height).all()
    assert {name: p for name, p in p_values(ours, theirs).items() if p < 0.002} == {}


def test_the_comparison_notices_another_distribution_of_ratios() -> None:
    found = p_values(crops(500, 375), torchvision_crops(500, 375, ratio=(0.8, 1.25)))
    assert found["ratio"] < 1e-6


@pytest.mark.parametrize(("width", "height"), [(4000, 10), (10, 4000), (1, 30), (30, 1)])
def test_where_no_crop_fits_a_panorama_gets_the_centre_as_in_torchvision(width: int, height: int) -> None:
    fallback = tuple(torchvision_crops(width, height, count=1)[0])
    share = np.mean([tuple(box) == fallback for box in crops(width, height, 300)])
    theirs = np.mean([tuple(box) == fallback for box in torchvision_crops(width, height, count=300)])
    assert theirs > 0.9
    assert share == pytest.approx(theirs, abs=0.1)


def test_a_scale_and_ratio_of_one_take_the_whole_square() -> None:
    assert random_resized_crop(generator(CROP, 0, 0), 64, 64, (1, 1), (1, 1)) == (0, 0, 64, 64)
    left, top, w, h = random_resized_crop(generator(CROP, 0, 0), 100, 64, (0.25, 0.25), (1, 1))
    assert w == h == round(math.sqrt(1600))
    assert 0 <= left <= 60
    assert 0 <= top <= 24
