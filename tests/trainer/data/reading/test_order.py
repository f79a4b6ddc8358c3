"""Which images a step sees, and where they are cropped: checked by counting, and against torchvision by statistics."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp, kstest
from torchvision.transforms import RandomResizedCrop

from trainer.data.reading.order import (
    ATTEMPTS,
    AUGMENT,
    CROP,
    CROP_DRAWS,
    MIX,
    ORDER,
    draws,
    epoch_order,
    generator,
    micro_batches,
    philox,
    random_resized_crop,
)
from trainer.recipes.config import Config

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
        rows = micro_batches(order, step, global_batch, batch)
        config = Config(global_batch_size=global_batch, device_batch_size=batch)
        shares = [rows[config.micro_batches_of(rank, world)] for rank in range(world)]
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


def test_philox_gives_the_published_words() -> None:
    """The known answers of Random123 (Salmon et al.), philox4x32 with 10 rounds."""
    ones, pi = 0xFFFFFFFF, (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    answers = {
        (0, (0, 0, 0, 0)): (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
        (2**64 - 1, (ones, ones, ones, ones)): (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        (0x299F31D0_A4093822, pi): (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    }
    for (key, counter), words in answers.items():
        assert philox(key, np.array(counter, np.uint64)[:, None]).ravel().tolist() == list(words)


def test_what_an_image_draws_depends_on_stream_seed_epoch_and_index_alone() -> None:
    indices = np.array([7, 0, 10**6, 7], np.int64)
    found = draws(CROP, 5, 3, indices, 9)
    assert found.shape == (4, 9)
    assert found.dtype == np.float64
    assert (found[0] == found[3]).all()
    assert (found[2] == draws(CROP, 5, 3, indices[2:3], 9)[0]).all()
    assert (found == draws(CROP, 5, 3, indices, 44)[:, :9]).all()
    others = [(AUGMENT, 5, 3), (CROP, 6, 3), (CROP, 5 + 2**40, 3), (CROP, 5, 4)]
    for other in [draws(*key, indices, 9) for key in others] + [draws(CROP, 5, 3, indices + 1, 9)]:
        assert not np.isclose(found, other).any()
    assert draws(CROP, 5, 3, indices, 0).shape == (4, 0)


def test_draws_are_uniform_and_uncorrelated() -> None:
    found = draws(CROP, 0, 0, np.arange(20_000), 8)
    assert found.min() >= 0
    assert found.max() < 1
    assert kstest(found.ravel(), "uniform").pvalue > 0.001
    assert np.abs(np.corrcoef(found.T) - np.eye(8)).max() < 0.03
    assert abs(np.corrcoef(found[1:, 0], found[:-1, 0])[0, 1]) < 0.03


def crops(width: int, height: int, count: int = 2000) -> np.ndarray:
    """(count, 4) as the loader draws them."""
    drawn = draws(CROP, 0, 0, np.arange(count), CROP_DRAWS)[:, 1:].tolist()
    return np.array([random_resized_crop(uniform, width, height, SCALE, RATIO) for uniform in drawn])


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
    uniform = [0.5] * 4 * ATTEMPTS
    assert random_resized_crop(uniform, 64, 64, (1, 1), (1, 1)) == (0, 0, 64, 64)
    left, top, w, h = random_resized_crop(uniform, 100, 64, (0.25, 0.25), (1, 1))
    assert w == h == round(math.sqrt(1600))
    assert 0 <= left <= 60
    assert 0 <= top <= 24


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-32])
def test_the_ends_of_the_range_stay_inside_the_image(uniform: float) -> None:
    for width, height in ((500, 375), (1, 1), (3, 200)):
        left, top, w, h = random_resized_crop([uniform] * 4 * ATTEMPTS, width, height, SCALE, RATIO)
        assert min(left, top) >= 0
        assert min(w, h) >= 1
        assert left + w <= width
        assert top + h <= height
